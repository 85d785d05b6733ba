"""The family `fusion`: late fusion of images, light curve and context of an alert, and its components."""

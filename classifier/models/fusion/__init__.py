"""The family `fusion`: images, light curve and context of an alert joined late, and the parts that it is made of."""

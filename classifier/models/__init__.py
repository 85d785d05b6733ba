"""Model families: one file or folder each, found through the entry-point group `skyheed.models`."""

"""From real frames, light curves and packets to archives."""

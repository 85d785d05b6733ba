"""What the command line offers, a file for each group of `skyheed --help`. Programs are imported when they run."""

"""The command-line verbs, one file per group of `skyheed --help`. Programs are imported only when they run."""

"""The command line: one file per noun. Needs the ``cli`` extra."""

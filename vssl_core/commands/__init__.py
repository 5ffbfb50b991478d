"""What stands behind each command: a function that does it and gives an exit code."""

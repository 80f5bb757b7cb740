"""The command line: the server and the sub-commands."""

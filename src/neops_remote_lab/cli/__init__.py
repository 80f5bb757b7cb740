"""The command line: the server and the client commands."""

"""The HTTP service: routes, request parsing, responses, and the assembly of the server's services."""

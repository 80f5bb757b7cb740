"""Side-by-side measurements: this server and client against version 1.4.0, bare netlab, or themselves when idle."""

"""Runs netlab, parses its output, and manages the lab of this host."""

"""Tests with many faults of one server or of several hosts, and helpers that they share with other fault tests."""

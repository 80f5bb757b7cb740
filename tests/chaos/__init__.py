"""Long tests that kill the server repeatedly, and helpers that they share with other fault tests."""

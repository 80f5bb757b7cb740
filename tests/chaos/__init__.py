"""Long tests that kill the server again and again, and what they share with other tests that break things."""

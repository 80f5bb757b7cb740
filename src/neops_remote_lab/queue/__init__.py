"""The queue of sessions: joining, waiting, activation, timeouts."""

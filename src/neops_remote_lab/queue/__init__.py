"""The queue of sessions: who waits, who is active, who is stale."""

"""The database: store protocol and its implementations. No other package executes SQL."""

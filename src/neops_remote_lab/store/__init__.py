"""The database: store protocol and SQLite implementation. No other package executes SQL."""

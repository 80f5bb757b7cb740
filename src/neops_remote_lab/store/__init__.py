"""The database: tables, connection, migrations, and the only statements there are."""

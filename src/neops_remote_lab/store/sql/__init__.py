"""What the databases share: tables, statements and migrations, with SQLAlchemy."""

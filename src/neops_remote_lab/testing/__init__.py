"""Support for tests with real labs: the fixture factory and the pytest plugin."""

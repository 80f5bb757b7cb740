"""What tests against real labs use: a fixture factory and the pytest plugin that orders the tests."""

"""Tests of the stores that run against every supported database."""

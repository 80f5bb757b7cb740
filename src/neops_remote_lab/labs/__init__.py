"""The labs of this host on behalf of sessions: acquire, release, topology checks, artifacts, readiness."""

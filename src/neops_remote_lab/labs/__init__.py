"""The life of labs on this host: acquires, teardowns, topology checks, readiness."""

"""Shares one netlab host among many: a FIFO queue of sessions, real virtual labs, and a pytest plugin."""


def __getattr__(name: str) -> str:
    """Look up `__version__` when it is asked for: every pytest run imports this package, and few need the version."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # noqa: PLC0415 - see above

    try:
        return metadata.version("neops-remote-lab")
    except metadata.PackageNotFoundError:
        return "0+source"  # a source tree that is not installed

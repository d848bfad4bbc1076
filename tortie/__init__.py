"""Tortie: a BGP-based container-networking agent, a drop-in replacement for Calico."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when asked for: importlib.metadata costs 20 ms, which no start should pay."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "v" + version("tortie")
    except PackageNotFoundError:  # running from a tree that was never installed
        return "v0.0.0"

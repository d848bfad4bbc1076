"""Tortie: a BGP-based container-networking agent, a drop-in replacement for Calico."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = "v" + version("tortie")
except PackageNotFoundError:  # running from a tree that was never installed
    __version__ = "v0.0.0"

"""Tortie: a BGP-based container-networking agent, a drop-in replacement for Calico."""

# The Calico release whose data model and behaviour this follows. Written here and nowhere else: reading
# it from the installed package's metadata would cost each command 30 ms of imports.
__version__ = "v3.33.0"

"""Defaults and validation of every v3 kind, as Calico's client and CRD schemas do them together.

`with_defaults` fills in what a writer may leave out; `check` raises ValidationError naming every
wrong field. Both are pure. Rules that need to look at other objects are in datastore.rules.
"""

from tortie.datastore.validate.registry import check, with_defaults

__all__ = ["check", "with_defaults"]

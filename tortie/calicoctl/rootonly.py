"""Commands that only the super user may run."""

import os

from tortie.calicoctl.errors import Refusal


def require() -> None:
    """Raises Refusal for everybody else."""
    if os.geteuid() != 0:
        raise Refusal("Need super user privileges: Operation not permitted")

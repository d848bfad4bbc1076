"""ExaBGP imported into the process of the tests, with the settings that it has in production."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.environ import environment
from tortie.bgp import exabgp


@contextmanager
def production() -> Iterator[None]:
    """Modules that import ExaBGP may be imported in it."""
    with environment(exabgp.environment(os.environ)):
        exabgp._know_domain()
        from exabgp.environment import getenv
        from exabgp.logger import log

        log.init(getenv())
        yield

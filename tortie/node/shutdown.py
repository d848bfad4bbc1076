"""`calico-node -shutdown`: what a pod's preStop hook runs. It leaves a note, and tells Kubernetes.

The note (RFC 3339) tells the next start, and a person, that the node was stopped on purpose. It goes
when the node is ready again.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping

from tortie.core.files import write_atomic
from tortie.core.paths import Paths
from tortie.node import condition

_log = logging.getLogger(__name__)


def main() -> int:
    path = Paths.from_env().shutdown_note
    try:
        write_atomic(path, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    except OSError as err:
        print(f"Unable to save shutdown timestamp: {path}: {err.strerror}", file=sys.stderr)
        return 1
    asyncio.run(condition.tell(os.environ, up=False))
    return 0


def remove_note(env: Mapping[str, str] = os.environ) -> None:
    """The node is up again."""
    try:
        os.unlink(Paths.from_env(env).shutdown_note)
    except FileNotFoundError:
        return
    except OSError as err:
        _log.error("Unable to remove shutdown timestamp file: %s", err)
        return
    _log.info("removed shutdown timestamp")

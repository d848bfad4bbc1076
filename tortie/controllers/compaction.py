"""Has etcd forget its history from time to time, so that it does not grow without end.

What is forgotten is older than one period: a watch that was interrupted meanwhile finds its place again.
(Reference: kube-controllers/pkg/kubecontrollers/run.go, startCompactor.)
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tortie.core.errors import DatastoreError, RevisionGone
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.keys import ResourceList

_log = logging.getLogger(__name__)

_ANY = ResourceList("ClusterInformation")  # the smallest list there is: its revision is that of the store


async def keep_compacting(
    backend: EtcdBackend, period: float, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> None:
    """Every period (seconds), until cancelled; a failure is made up for the next time."""
    before = ""
    while True:
        try:
            now = (await backend.list(_ANY)).revision
            if before not in ("", now):
                await backend.compact(before)
                _log.info("compacted etcd's history up to revision %s", before)
            before = now
        except RevisionGone as err:  # by somebody else, an API server for one
            _log.debug("nothing to compact: %s", err)
            before = ""
        except DatastoreError as err:
            _log.warning("etcd's history is not compacted: %s", err)
        await sleep(period)

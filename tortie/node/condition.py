"""The condition NetworkUnavailable of this node in Kubernetes: pods are placed here only while it is not set.

Clouds set it on a new node until its network is there. As in Calico, the node says that it is there once
it is ready, and takes that back when it is shut down.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from tortie.core.errors import ConfigError, DatastoreError
from tortie.datastore import config, nodename
from tortie.datastore.connect import kubernetes_beside

_log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds in which it is tried again, Calico's
_REST = 1.0  # seconds between two tries


async def tell(env: Mapping[str, str], *, up: bool) -> None:
    """Without Kubernetes, or without networking of ours, there is nothing to tell. A failure is logged."""
    if env.get("CALICO_NETWORKING_BACKEND") == "none":
        return None
    try:
        api = kubernetes_beside(config.from_env(env), env)
        name = env.get("CALICO_K8S_NODE_REF") or nodename.read(env)[0]
    except ConfigError as err:
        _log.error("Unable to set NetworkUnavailable: %s", err)
        return None
    if api is None:
        return None
    condition = network_available(up, time.time())
    why: object = "no answer in time"
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                try:
                    return await api.set_node_condition(name, condition)
                except DatastoreError as err:
                    why = err
                await asyncio.sleep(_REST)
    except TimeoutError:
        _log.error("Unable to set NetworkUnavailable of node %s: %s", name, why)
    finally:
        await api.close()


def network_available(up: bool, now: float) -> dict[str, str]:
    """A condition of a Kubernetes node, in Calico's words. `now`: seconds since the epoch."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return {
        "type": "NetworkUnavailable",
        "status": "False" if up else "True",
        "reason": "CalicoIsUp" if up else "CalicoIsDown",
        "message": "Calico is running on this node" if up else "Calico is shutting down on this node",
        "lastTransitionTime": stamp,
        "lastHeartbeatTime": stamp,
    }

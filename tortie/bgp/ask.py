"""What the BGP speaker of this host is doing, whichever it is: asked by calicoctl, probes, metrics and confd.

BIRD is asked on its sockets; of ExaBGP the agent beside it tells, in a file and on a socket of its own. The
one that runs is the one to believe.
"""

import asyncio

from tortie.bgp import birdctl, birdstatus, table
from tortie.bgp import status as agent
from tortie.bgp.status import Status
from tortie.bgp.table import TableRoute
from tortie.core.paths import Paths


def status(paths: Paths | None = None) -> Status | None:
    """None if none runs. Blocks: BIRD is waited for.

    Raises ConfigError if what the agent wrote cannot be read.
    """
    paths = paths or Paths.from_env()
    return birdstatus.read(paths) or (agent.read(paths.bgp_status) if agent.runs(paths) else None)


async def routes(paths: Paths | None = None) -> list[TableRoute]:
    """The whole table. Raises PeerError if nobody tells it."""
    paths = paths or Paths.from_env()
    if any(birdctl.there(path) for path in birdstatus.sockets(paths).values()):
        return await asyncio.to_thread(birdstatus.read_table, paths)
    return await table.read(paths.bgp_routes)

"""What people are told of the table: which paths are used, and of the others why they are not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.bgp.test_bgp_router import World
from tortie.bgp import table, tablerows
from tortie.bgp.config import Block, Config, Local, Peer, Pool
from tortie.bgp.filters import Filter, Rule
from tortie.bgp.table import TableRoute
from tortie.core.errors import PeerError

pytestmark = pytest.mark.unit

_A = Peer(address="10.0.0.2", kind="mesh", local_as=64512, peer_as=64512, local_address="10.0.0.1")
_B = replace(_A, address="10.0.0.3", kind="node", filters=("deny",))
_CONFIG = Config(
    local=Local(name="n", router_id="10.0.0.1", as_number=64512, addresses=("10.0.0.1",)),
    peers=(_A, _B),
    pools=(Pool(cidr="192.168.0.0/16"),),
    blocks=(Block(cidr="192.168.1.0/26"),),
    filters=(Filter(name="deny", import4=(Rule(accept=False, cidr="192.168.7.0/26", operator="Equal"),)),),
)


def rows(world: World, prefix: str) -> list[dict[str, Any]]:
    kernel = {route.key: route for route in world.routes.values()}
    found = tablerows.rows(world.router, kernel, {2: "eth0"})
    fields = ("origin", "peer", "interface", "used", "reason")
    return [{field: getattr(one, field) for field in fields} for one in found if one.prefix == prefix]


def learned(peer: Peer, interface: str, used: bool, reason: str) -> dict[str, Any]:
    return {
        "origin": "peer",
        "peer": peer.address,
        "interface": interface,
        "used": used,
        "reason": reason,
    }


def test_every_path_with_its_reason() -> None:
    world = World(_CONFIG)
    world.up(_A, _B)
    world.announce(_A, "192.168.1.0/26", "192.168.2.0/26", "192.168.3.0/26", "203.0.113.0/24")
    world.announce(_B, "192.168.2.0/26", "192.168.7.0/26")
    world.announce(_B, "192.168.3.0/26", local_pref=50)
    assert rows(world, "192.168.1.0/26") == [
        {"origin": "static", "peer": "", "interface": "blackhole", "used": True}
        | {"reason": "higher preference"},
        learned(_A, "", False, "another is better: higher preference"),
    ]
    assert rows(world, "192.168.2.0/26") == [
        learned(_A, "eth0", True, "lower router ID"),
        learned(_B, "eth0", True, "lower router ID"),
    ]
    assert rows(world, "192.168.3.0/26") == [
        learned(_A, "eth0", True, "higher local preference"),
        learned(_B, "", False, "another is better: higher local preference"),
    ]
    assert rows(world, "192.168.7.0/26") == [learned(_B, "", False, "filter deny, importV4 rule 1")]
    assert rows(world, "203.0.113.0/24") == [learned(_A, "", False, "outside all pools")]


def test_an_unreachable_next_hop() -> None:
    world = World(_CONFIG)
    world.up(_A)
    away = replace(_A, address="10.0.0.2")
    world.announce(away, "192.168.2.0/26")
    for route in list(world.resolver.routes):
        world.resolver.change(route, gone=True)
    world.router.kernel_changed()
    world.settle()
    assert rows(world, "192.168.2.0/26") == [learned(_A, "", False, "next hop unreachable")]


def test_over_the_socket(tmp_path: Path) -> None:
    routes = [TableRoute(prefix=f"10.{n >> 8}.{n & 255}.0/24", origin="peer") for n in range(2000)]
    path = str(tmp_path / "sock")

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await table.write(writer, routes)
        writer.close()

    async def act() -> list[TableRoute]:
        async with await asyncio.start_unix_server(serve, path):
            return await table.read(path)

    assert asyncio.run(act()) == routes


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"the BGP agent does not tell its routes: .*No such file"):
        asyncio.run(table.read(str(tmp_path / "sock")))

"""Every reason for which an address cannot be had is named in words that a person can act on."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import structs

from tests.ipam.ipam_world import World, no_sleep, run
from tortie.datastore.types.ipam import DEFAULT_IPAM_CONFIG
from tortie.ipam.allocator import Allocator
from tortie.ipam.block import Owner
from tortie.ipam.requests import AutoAssign

pytestmark = pytest.mark.unit


def why(story: Any, host: str = "a", version: int = 4, **request: Any) -> str:
    """The explanation of what an assignment on host `a` runs into after the story."""
    answer: list[str] = []

    async def whole() -> None:
        world = World()
        await world.node("a", rack="1")
        allocator = Allocator(world.client, host, clock=world.clock, sleep=no_sleep, rand=lambda: 0.0)
        await story(world, allocator)
        wanted = AutoAssign(use="Workload", num4=1, **request)
        answer.append(await allocator.why_not(wanted, version))

    run(whole())
    return answer[0]


async def nothing(_world: World, _allocator: Allocator) -> None:
    return None


def pool(**spec: Any) -> Any:
    async def story(world: World, _allocator: Allocator) -> None:
        await world.pool("p", "10.0.0.0/29", 30, **spec)

    return story


def test_no_pool_at_all() -> None:
    assert why(nothing) == "there is no IPv4 pool: create one with calicoctl create -f"
    assert why(pool(), version=6) == "there is no IPv6 pool: create one with calicoctl create -f"
    assert why(pool(), pools4=("10.9.0.0/24",)) == "there is no IPv4 pool with CIDR 10.9.0.0/24"


def test_no_such_node() -> None:
    assert why(pool(), host="ghost") == "node ghost does not exist in the datastore"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"disabled": True}, "is disabled"),
        ({"nodeSelector": "rack == '2'"}, "does not select node a (nodeSelector: rack == '2')"),
        (
            {"namespaceSelector": "team == 'x'", "allowedUses": ("Workload",)},
            "does not select the pod's namespace (namespaceSelector: team == 'x')",
        ),
        ({"assignmentMode": "Manual"}, "is used only where it is asked for (assignmentMode: Manual)"),
        ({"allowedUses": ("Tunnel",)}, "is not for Workload (allowedUses: Tunnel)"),
        ({}, "has 8 of 8 addresses free"),
    ],
)
def test_why_a_pool_is_not_used(spec: Mapping[str, Any], reason: str) -> None:
    assert why(pool(**spec)) == f"pool p (10.0.0.0/29) {reason}"


def test_a_full_pool_with_blocks_of_nodes_that_are_gone() -> None:
    async def story(world: World, allocator: Allocator) -> None:
        await world.pool("p", "10.0.0.0/29", 30)
        await allocator.auto_assign(AutoAssign(use="Workload", num4=4))
        await allocator.claim_affinity("10.0.0.0/29", Owner("gone"))
        await allocator.auto_assign(AutoAssign(use="Workload", num4=4))

    assert why(story) == (
        "pool p (10.0.0.0/29) has 0 of 8 addresses free; "
        "1 block is affine to a node that no longer exists: calicoctl ipam check"
    )


def test_what_strict_affinity_reservations_and_cooldown_take_away() -> None:
    async def story(world: World, allocator: Allocator) -> None:
        await world.pool("p", "10.0.0.0/29", 30)
        await world.node("b")
        await allocator.claim_affinity("10.0.0.0/30", Owner("b"))
        await allocator.auto_assign(AutoAssign(use="Workload", num4=4, handle="h"))
        await world.reserve("r", "10.0.0.1/32")
        config = structs.replace(
            DEFAULT_IPAM_CONFIG, strict_affinity=True, maxBlocksPerHost=1, ipCooldownSeconds=60
        )
        await allocator.set_config(config)
        await allocator.release_by_handle("h")

    assert why(story) == (
        "pool p (10.0.0.0/29) has 3 of 8 addresses free (3 of them in blocks of other nodes, which strict "
        "affinity keeps from this one, 4 rest for 60 s after their release, 1 are reserved by "
        "IPReservations); "
        "node a owns 1 blocks, and maxBlocksPerHost is 1"
    )

"""A cluster of three that loses its leader, a connection between members, one member after another."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial

import pytest

from tests.support.aio import run, until
from tests.support.etcd import Etcd, cluster, wait_until
from tests.support.links import link_to, read
from tortie.core.errors import DatastoreUnreachable
from tortie.datastore import etcdproto as proto
from tortie.datastore.etcdchannel import Timing

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def three() -> Iterator[list[Etcd]]:
    made = cluster(3)
    yield made
    for member in made:
        member.close()


@pytest.fixture
def members(three: list[Etcd]) -> list[Etcd]:
    """A cluster of three, all running."""
    for member in three:
        if not member.running:
            member.kill()
            member.start(wait=False)
    for member in three:
        member.wait_healthy()
    return three


def leader_of(members: list[Etcd]) -> Etcd:
    """The leader among the members, once it is known to one that runs."""
    found: list[Etcd] = []

    def known() -> bool:
        for member in (m for m in members if m.running):
            try:
                status = member.ask("maintenance/status")
            except (RuntimeError, OSError):
                continue
            if status.get("leader") == status["header"]["member_id"]:
                found.append(member)
                return True
        return False

    wait_until(known, what="a leader")
    return found[0]


def test_the_loss_of_the_leader_is_survived(members: list[Etcd]) -> None:
    async def scenario() -> None:
        leader = leader_of(members)
        link = link_to(*(member.endpoint for member in members), first=members.index(leader))
        await link.call(proto.PUT, proto.put(b"k", b"1"))
        leader.kill()

        await until(lambda: read(link))
        assert await read(link) == [b"1"]
        await asyncio.to_thread(leader_of, members)
        await link.call(proto.PUT, proto.put(b"k", b"2"))
        assert await read(link) == [b"2"]
        await link.close()

    run(scenario())


def test_a_member_cut_off_from_the_others_is_left(members: list[Etcd]) -> None:
    """It answers, and would serve a watch in silence for ever: it must be noticed and passed over."""

    async def scenario() -> None:
        leader = leader_of(members)
        lonely = next(member for member in members if member is not leader)
        rest = [member for member in members if member is not lonely]
        link = link_to(
            *(member.endpoint for member in [lonely, *rest]), timing=Timing(dial=3, call=3, quiet=60)
        )
        await link.call(proto.PUT, proto.put(b"k", b"1"))
        watching = link.watch(proto.watch(b"k", b"", 1))
        while not (await anext(watching)).events:
            pass
        for member in rest:
            member.stop_answering()
        with pytest.raises(DatastoreUnreachable, match="no leader"):
            await anext(watching)
        with pytest.raises(DatastoreUnreachable):
            await link.call(proto.PUT, proto.put(b"k", b"2"))
        for member in rest:
            member.resume()
        await asyncio.to_thread(leader_of, members)
        await until(lambda: link.call(proto.PUT, proto.put(b"k", b"3")))
        await link.close()

    run(scenario())


def test_requests_go_on_while_members_are_killed_one_by_one(members: list[Etcd]) -> None:
    async def scenario() -> None:
        link = link_to(*(member.endpoint for member in members), timing=Timing(dial=3, call=3))
        for number, member in enumerate(members):
            member.kill()
            request = proto.put(b"k", str(number).encode())
            await until(partial(link.call, proto.PUT, request))
            assert await read(link) == [str(number).encode()]
            await member.restart_async()
        async with aclosing(link.watch(proto.watch(b"k", b"", 1))) as watching:
            assert (await anext(watching)).created
        await link.close()

    run(scenario())

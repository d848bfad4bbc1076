"""A cluster of three that loses its leader, a connection between members, one member after another."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import pytest

from tests.support.aio import run, until
from tests.support.etcd import Etcd, cluster, wait_until
from tests.support.links import link_to, read, wait_for
from tortie.core.errors import DatastoreUnreachable
from tortie.datastore import etcdproto as proto
from tortie.datastore.etcdlink import EtcdLink

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


async def agreed(link: EtcdLink) -> list[bytes]:
    """What is read once there is a leader; on a busy machine members can look for another at any time."""
    found: list[bytes] = []

    async def attempt() -> None:
        found[:] = await read(link)

    await until(attempt)
    return found


async def put(link: EtcdLink, value: bytes) -> None:
    """Until it is done."""
    await until(lambda: link.call(proto.PUT, proto.put(b"k", value)))


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
        await put(link, b"1")
        leader.kill()
        assert await agreed(link) == [b"1"]
        await put(link, b"2")
        assert await agreed(link) == [b"2"]
        await link.close()

    run(scenario())


def test_a_member_cut_off_from_the_others_is_left(members: list[Etcd]) -> None:
    """It answers, and would serve a watch in silence for ever: it must be noticed and passed over."""

    async def scenario() -> None:
        leader = leader_of(members)
        lonely = next(member for member in members if member is not leader)
        rest = [member for member in members if member is not lonely]
        links = [link_to(*(member.endpoint for member in [lonely, *rest]))]
        watches: list[AsyncGenerator[proto.WatchReply, None]] = []

        async def begin() -> None:
            """From the lonely one: a busy cluster may look for another leader meanwhile, and a link go on."""
            await links[-1].close()
            links.append(link_to(*(member.endpoint for member in [lonely, *rest])))
            await links[-1].call(proto.PUT, proto.put(b"k", b"1"))
            watches.append(links[-1].watch(proto.watch(b"k", b"", 1)))
            while not (await anext(watches[-1])).events:
                pass

        await until(begin)
        link, watching = links[-1], watches[-1]
        for member in rest:
            member.stop_answering()
        with pytest.raises(DatastoreUnreachable, match="no leader"):
            await anext(watching)
        wait_for(link, dial=3, call=3)
        with pytest.raises(DatastoreUnreachable):
            await link.call(proto.PUT, proto.put(b"k", b"2"))
        for member in rest:
            member.resume()
        await put(link, b"3")
        await link.close()

    run(scenario())


def test_requests_go_on_while_members_are_killed_one_by_one(members: list[Etcd]) -> None:
    async def scenario() -> None:
        link = link_to(*(member.endpoint for member in members))
        for number, member in enumerate(members):
            member.kill()
            await put(link, str(number).encode())
            assert await agreed(link) == [str(number).encode()]
            await member.restart_async()

        async def watched() -> None:
            async with aclosing(link.watch(proto.watch(b"k", b"", 1))) as watching:
                assert (await anext(watching)).created

        await until(watched)
        await link.close()

    run(scenario())

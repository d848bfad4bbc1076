"""One socket: results in order, the kernel's words, dumps that are disturbed, answers that get lost."""

import errno
import os
import socket
import threading
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import links, netns, routes
from tortie.linux.codec import RTM_GETLINK, Message
from tortie.linux.netlink import BATCH, NetlinkSocket, gone
from tortie.linux.routes import Route, RouteType

pytestmark = pytest.mark.kernel


def hole(n: int) -> Route:
    return Route(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32", type=RouteType.BLACKHOLE)


def test_each_message_has_its_result_in_order(netns: Namespace) -> None:
    results = netns.netlink.request(
        [
            links.create_bridge("one"),
            links.create_bridge("one"),
            links.delete("two"),
            links.create_bridge("three"),
        ]
    )
    assert [None if r is None else r.errno for r in results] == [None, errno.EEXIST, errno.ENODEV, None]
    assert {link["ifname"] for link in netns.ip("link")} == {"lo", "one", "three"}
    assert results[2] is not None and gone(results[2]) and results[1] is not None and not gone(results[1])


def test_a_batch_larger_than_one_datagram(netns: Namespace) -> None:
    count = 3 * BATCH + 7
    wrong = {0, BATCH - 1, BATCH, count - 1}
    messages = [
        routes.delete_message(hole(n).key) if n in wrong else routes.replace_message(hole(n))
        for n in range(count)
    ]
    results = netns.netlink.request(messages)
    assert {i for i, result in enumerate(results) if result is not None} == wrong
    assert len(netns.ip("route")) == count - len(wrong)
    assert netns.netlink.request([]) == []


def test_execute_tries_all_and_raises_the_first_error(netns: Namespace) -> None:
    with pytest.raises(KernelError, match="delete link nope: No such device"):
        netns.netlink.execute(links.delete("nope"), links.create_bridge("b"), links.delete("neither"))
    assert netns.ip("link", "show", "b")


def test_the_kernels_own_words_are_in_the_error(netns: Namespace) -> None:
    (error,) = netns.netlink.request([routes.replace_message(Route("10.0.0.0/8", gateway="192.0.2.1"))])
    assert error is not None
    assert str(error) == "replace route 10.0.0.0/8: Network is unreachable (Nexthop has invalid gateway)"


def test_a_message_too_big_to_send_fails_alone(netns: Namespace) -> None:
    hops = (routes.NextHop("192.0.2.1", 1),) * 4000
    results = netns.netlink.request(
        [
            routes.replace_message(hole(1)),
            routes.replace_message(Route("10.0.0.0/8", nexthops=hops)),
            routes.replace_message(hole(2)),
        ]
    )
    assert results[0] is None and results[2] is None
    assert results[1] is not None and results[1].what == "route 10.0.0.0/8"


def test_large_messages_share_no_datagram_they_do_not_fit(netns: Namespace) -> None:
    """256 routes with 100 next hops are 400 kB; the default send buffer takes half of that."""
    hops = (routes.NextHop("192.0.2.1", 9999),) * 100
    messages = [
        routes.replace_message(replace(hole(n), type=RouteType.UNICAST, nexthops=hops)) for n in range(256)
    ]
    results = netns.netlink.request(messages)
    assert {None if error is None else error.errno for error in results} == {errno.ENETUNREACH}


def test_a_lost_answer_is_an_error_of_that_message_only(netns: Namespace) -> None:
    netlink = netns.socket()
    netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least: a few answers
    absent, present = range(100), range(100, 200)
    messages = [routes.delete_message(hole(n).key) for n in absent]
    messages += [routes.replace_message(hole(n)) for n in present]
    found = [None if error is None else error.errno for error in netlink.request(messages)]
    assert found.count(errno.ESRCH) >= 1 and set(found[:100]) == {errno.ESRCH, errno.ENOBUFS}
    assert set(found[100:]) <= {None, errno.ENOBUFS}, "which of them were refused nobody can tell"
    assert len(netns.ip("route")) == 100, "done all the same"
    netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    assert netlink.request([routes.delete_message(hole(n).key) for n in present]) == [None] * 100


def test_what_succeeds_is_acknowledged_together(netns: Namespace) -> None:
    """One answer for a batch, whatever its size: a buffer for a few will do."""
    netlink = netns.socket()
    netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    assert netlink.request([routes.replace_message(hole(n)) for n in range(BATCH)]) == [None] * BATCH


def test_answers_left_over_from_a_broken_off_request_are_skipped(netns: Namespace) -> None:
    def interrupted() -> bytes | None:
        raise KeyboardInterrupt

    netlink = netns.socket()
    receive, netlink._receive = netlink._receive, interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        netlink.request([links.delete("nope")])
    with pytest.raises(KeyboardInterrupt):
        netlink.dump(Message(RTM_GETLINK, 0, bytes(16), "dump", "links"))
    netlink._receive = receive  # type: ignore[method-assign]
    assert netlink.request([links.create_bridge("b")]) == [None]
    assert {link.name for link in links.dump(netlink)} == {"lo", "b"}


def test_sequence_numbers_wrap(netns: Namespace) -> None:
    netlink = netns.socket()
    netlink._sequence = 0xFFFFFFFF - 3
    messages = [links.create_bridge(f"b{n}") for n in range(5)]
    assert netlink.request(messages) == [None] * 5
    assert netlink._sequence == 5
    netlink._sequence = 0xFFFFFFFF - 1
    assert len(links.dump(netlink)) == 6


class Meddler(NetlinkSocket):
    """Calls `meddle` between the datagrams of a dump."""

    meddle: Callable[[], None] | None = None

    def _receive(self) -> bytes | None:
        datagram = super()._receive()
        if self.meddle is not None:
            self.meddle()
        return datagram


@pytest.fixture
def meddled(netns: Namespace) -> tuple[Meddler, Namespace]:
    """Enough interfaces for several datagrams, and a socket that can be disturbed between them."""
    netns.netlink.execute(*(links.create_bridge(f"b{n}") for n in range(100)))
    return netns.call(Meddler), netns


def test_an_interrupted_dump_is_read_again(meddled: tuple[Meddler, Namespace]) -> None:
    netlink, ns = meddled

    def once() -> None:
        netlink.meddle = None
        ns.netlink.execute(links.delete("b0"), links.create_bridge("late"))

    netlink.meddle = once
    names = {link.name for link in links.dump(netlink)}
    assert names == {"lo", "late", *(f"b{n}" for n in range(1, 100))}


def test_a_dump_that_never_settles_is_an_error_and_the_socket_lives_on(
    meddled: tuple[Meddler, Namespace],
) -> None:
    netlink, ns = meddled
    flips = 0

    def always() -> None:
        nonlocal flips
        flips += 1
        ns.netlink.execute(links.create_bridge("x") if flips % 2 else links.delete("x"))

    netlink.meddle = always
    with pytest.raises(KernelError, match=r"dump links: .*kept changing, 5 tries") as caught:
        links.dump(netlink)
    assert caught.value.errno == errno.EINTR
    netlink.meddle = None
    assert len(links.dump(netlink)) in (101, 102)
    netlink.close()


def test_a_refused_dump_is_an_error(netns: Namespace) -> None:
    with pytest.raises(KernelError, match="dump nonsense"):
        netns.netlink.dump(Message(RTM_GETLINK, 0, bytes(15) + b"\1", "dump", "nonsense"))


def test_getting_nothing_ends(netns: Namespace) -> None:
    with pytest.raises(KernelError) as caught:
        netns.netlink.get(Message(RTM_GETLINK, 0, links.delete("nope").body, "get", "link nope"))
    assert caught.value.errno == errno.ENODEV


def test_no_events_without_groups(netns: Namespace) -> None:
    with pytest.raises(BlockingIOError):
        netns.netlink.receive()


def test_a_message_from_another_process_is_ignored(netns: Namespace) -> None:
    netlink = netns.socket()

    def forge() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
            forger.bind((0, 0))
            forger.sendto(bytes(16), (netlink._port, 0))

    netns.call(forge)
    assert netlink.receive() == []
    assert netlink.request([links.create_bridge("b")]) == [None]


def test_an_answer_that_does_not_fit_is_an_error_and_the_socket_lives_on(netns: Namespace) -> None:
    netns.netlink.execute(*(links.create_bridge(f"b{n}") for n in range(40)))
    netlink = netns.socket()
    whole, netlink._buffer = netlink._buffer, bytearray(64)
    with pytest.raises(KernelError, match="bytes do not fit"):
        links.dump(netlink)
    netlink._buffer = whole
    assert netlink.request([links.create_bridge("late")]) == [None]
    assert len(links.dump(netlink)) == 42


def test_a_closed_socket_is_a_kernel_error(netns: Namespace) -> None:
    with netns.call(NetlinkSocket) as netlink:
        pass
    (error,) = netlink.request([links.delete("x")])
    assert error is not None and error.errno == errno.EBADF
    with pytest.raises(KernelError):
        links.dump(netlink)


def test_a_socket_keeps_its_namespace(make_netns: Callable[[], Namespace]) -> None:
    one, two = make_netns(), make_netns()
    one.netlink.execute(links.create_bridge("in-one"))
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.extend(link.name for link in links.dump(one.netlink)))
    thread.start()
    thread.join()
    assert names == ["lo", "in-one"]
    assert [link.name for link in links.dump(two.netlink)] == ["lo"]
    here = netns.current()
    try:
        assert not netns.same(here, one.fd), "the test itself never left"
    finally:
        os.close(here)

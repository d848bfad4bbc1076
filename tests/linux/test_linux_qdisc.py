"""Token buckets and redirections as the kernel understands them; tc says the same of them."""

import pytest

from tests.netns_lab import Namespace
from tortie.linux import links, qdisc
from tortie.linux.qdisc import HANDLE, Bucket

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    "bucket",
    [
        Bucket(1_000_000, 32_000, 57_000),
        Bucket(125, 2_000, 5_000),
        Bucket(1_250_000_000, 500_000_000, 0xFFFFFFFF),
        Bucket(12_500_000_000, 100_000_000, 1_000_000_000),
        Bucket(1_000_000, 32_000, 57_000, 2_000_000, 3_000),
    ],
)
def test_a_bucket_is_read_as_it_was_written(netns: Namespace, bucket: Bucket) -> None:
    index, _ = netns.veth("one", "other")
    netns.netlink.execute(qdisc.replace_bucket(index, Bucket(5, 2_000, 5_000)))
    netns.netlink.execute(qdisc.replace_bucket(index, bucket))
    (found,) = [one for one in qdisc.dump(netns.netlink) if one.bucket is not None]
    assert (found.ifindex, found.kind, found.handle) == (index, "tbf", HANDLE)
    assert found.bucket is not None and bucket.near(found.bucket), found
    netns.netlink.execute(qdisc.delete_bucket(index))
    assert "tbf" not in netns.sh("tc qdisc show")


def test_tc_reads_the_same(netns: Namespace) -> None:
    index, _ = netns.veth("one", "other")
    netns.netlink.execute(qdisc.replace_bucket(index, Bucket(1_000_000, 32_768, 57_768)))
    shown = netns.sh("tc qdisc show dev one")
    assert "qdisc tbf ca11: root" in shown and "rate 8Mbit burst 32Kb lat 25ms" in shown


def test_only_our_own_bucket_is_deleted(netns: Namespace) -> None:
    index, _ = netns.veth("one", "other")
    netns.sh("tc qdisc add dev one root handle 1: tbf rate 8mbit burst 32kb latency 25ms")
    (error,) = netns.netlink.request([qdisc.delete_bucket(index)])
    assert error is not None
    assert "tbf 1: root" in netns.sh("tc qdisc show dev one")


def test_what_comes_in_is_redirected(netns: Namespace) -> None:
    index, _ = netns.veth("one", "other")
    netns.netlink.execute(links.create("ifb-one", "ifb", up=True))
    netns.netlink.execute(qdisc.add_ingress(index), qdisc.redirect(index, netns.ifindex("ifb-one")))
    shown = netns.sh("tc filter show dev one ingress")
    assert "match 00000000/00000000 at 0" in shown and "Egress Redirect to device ifb-one" in shown
    assert any(one.kind == "ingress" and one.ifindex == index for one in qdisc.dump(netns.netlink))
    netns.netlink.execute(qdisc.delete_ingress(index))
    assert "ingress" not in netns.sh("tc qdisc show")

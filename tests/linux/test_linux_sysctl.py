"""Kernel parameters: the right namespace, batches, and keys that try to leave /proc/sys."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import sysctl

pytestmark = pytest.mark.kernel


def conf(interface: str, parameter: str = "forwarding", family: str = "ipv4") -> str:
    return sysctl.interface_key(family, "conf", interface, parameter)


def test_values_are_written_in_the_right_namespace(make_netns: Callable[[], Namespace]) -> None:
    one, two = make_netns(), make_netns()
    for ns in (one, two):
        ns.veth("eth0.100", "b")
    key = conf("eth0.100")
    one.call(sysctl.write, key, 1)
    two.call(sysctl.write, key, "0")
    assert (one.call(sysctl.read, key), two.call(sysctl.read, key)) == ("1", "0")
    assert one.sh("cat /proc/sys/net/ipv4/conf/eth0.100/forwarding").strip() == "1"
    with pytest.raises(KernelError):
        sysctl.read(key)


def test_a_batch_names_what_failed_and_sets_the_rest(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    ns.veth("a", "b")
    values: dict[str, str | int] = {
        conf("a", "proxy_arp"): 1,
        conf("gone", "proxy_arp"): 1,
        conf("a", "accept_dad", "ipv6"): 0,
        "net/ipv4/neigh/a/proxy_delay": 0,
        conf("a", "nonsense"): 1,
        conf("a", "rp_filter"): "many",
        "../../etc/passwd": "x",
    }
    failures = ns.call(sysctl.apply, values)
    assert {key: error.errno for key, error in failures.items()} == {
        conf("gone", "proxy_arp"): errno.ENOENT,
        conf("a", "nonsense"): errno.ENOENT,
        conf("a", "rp_filter"): errno.EINVAL,
        "../../etc/passwd": errno.EINVAL,
    }
    assert ns.call(sysctl.read, conf("a", "proxy_arp")) == "1"
    assert ns.call(sysctl.read, conf("a", "accept_dad", "ipv6")) == "0"
    assert str(failures[conf("gone", "proxy_arp")]) == (
        "write sysctl net/ipv4/conf/gone/proxy_arp: No such file or directory"
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "../etc/passwd",
        "net/../../etc/passwd",
        "/etc/passwd",
        "net//ipv4",
        "net/./x",
        "net/a\0b",
        "\ud800",
    ],
)
def test_keys_that_leave_proc_sys_are_refused(key: str) -> None:
    for function in (sysctl.read, lambda key: sysctl.write(key, "1")):
        with pytest.raises(KernelError, match="not a parameter name"):
            function(key)


@pytest.mark.parametrize("interface", ["", "..", "a/b", "x" * 16, "../all", "a b", "\ud800"])
def test_interface_keys_refuse_what_is_no_interface_name(interface: str) -> None:
    with pytest.raises(KernelError, match="not an interface name"):
        conf(interface)


def test_nothing_is_ever_created(
    make_netns: Callable[[], Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "_ROOT", f"{tmp_path}/")
    with pytest.raises(KernelError):
        sysctl.write("new", "1")
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(KernelError):
        sysctl.write("link", "1")
    assert (tmp_path / "target").read_text() == "untouched" and not (tmp_path / "new").exists()


def test_all_and_default_and_long_values(make_netns: Callable[[], Namespace]) -> None:
    ns = make_netns()
    for interface in ("all", "default", "lo"):
        ns.call(sysctl.write, conf(interface, "disable_ipv6", "ipv6"), 1)
        assert ns.call(sysctl.read, conf(interface, "disable_ipv6", "ipv6")) == "1"
    assert len(ns.call(sysctl.read, "net/ipv4/ip_local_port_range").split()) == 2

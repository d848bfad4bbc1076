"""Fixtures of the CNI tests: the built shim, and a machine to run it on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns_lab import Namespace
from tests.support.cni import Machine, Servers, entered
from tests.support.etcd import Etcd
from tortie.cni.shim import build
from tortie.linux import addresses, links, routes
from tortie.linux.routes import Route


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin binary, built as ./dev builds it."""
    path = tmp_path_factory.mktemp("shim") / "calico"
    build(str(path))
    return path


@pytest.fixture(scope="session")
def cni_host() -> Iterator[tuple[Namespace, Etcd]]:
    """A host with an uplink and default routes, and an etcd on its loopback."""
    host, etcd = Namespace(), Etcd()
    index, _ = host.veth("uplink", "outside")
    host.netlink.execute(
        addresses.add(index, "192.0.2.1/24"),
        addresses.add(index, "2001:db8::1/64", nodad=True),
        routes.replace_message(Route("0.0.0.0/0", gateway="192.0.2.254", ifindex=index)),
        routes.replace_message(Route("::/0", gateway="2001:db8::ff", ifindex=index)),
        links.change(index, up=True),
    )
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    with entered(host):
        etcd.start()
    yield host, etcd
    etcd.close()
    host.close()


@pytest.fixture(scope="session")
def cni_servers(cni_host: tuple[Namespace, Etcd]) -> Iterator[Servers]:
    servers = Servers(cni_host[0])
    yield servers
    servers.close()


@pytest.fixture
def bare_machine(
    cni_host: tuple[Namespace, Etcd], cni_servers: Servers, shim: Path, tmp_path: Path
) -> Iterator[Machine]:
    """A machine with an empty datastore and no server."""
    host, etcd = cni_host
    if not etcd.running:
        with entered(host):
            etcd.restart()
    host.call(etcd.wipe)
    one = Machine(host, etcd, cni_servers, tmp_path, shim)
    one.clear()
    yield one
    one.close()


@pytest.fixture
def machine(bare_machine: Machine) -> Machine:
    """A machine of a cluster with one IPv4 pool, and a CNI server."""
    bare_machine.seed()
    bare_machine.start_server()
    return bare_machine

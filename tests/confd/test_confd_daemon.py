"""The daemon on a datastore in memory: when it writes, when it does not, and what it says."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.confd.confd_cases import MASTER, NO_MESH, NODES, POOL, felix, node, peer, pool
from tests.support.memory_backend import MemoryBackend
from tortie.bgp.config import Config, load
from tortie.confd import files
from tortie.confd.daemon import Confd
from tortie.core.backoff import Backoff
from tortie.core.errors import ConfigError
from tortie.core.tasks import cancel, supervise
from tortie.datastore.keys import AffinityKey, AffinityList, ResourceKey
from tortie.datastore.types.ipam import Affinity
from tortie.datastore.types.meta import Resource

pytestmark = pytest.mark.unit


class Daemon:
    """A Confd on a folder of its own, with somebody listening where the agent would."""

    def __init__(self, folder: Path) -> None:
        self.backend = MemoryBackend()
        self.folder = folder
        self._agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._agent.bind(str(folder / "bgp.sock"))

    def close(self) -> None:
        self._agent.close()

    def run(self, act: Callable[[], Awaitable[None]], **environment: str) -> None:
        async def main() -> None:
            confd = Confd(self.backend, "kube-master", {"FELIX_CONFIGFILE": "/nonexistent", **environment})
            rendering = supervise("rendering", confd.render, Backoff(first=0.0, cap=0.0))
            tasks = [asyncio.create_task(confd.watch()), asyncio.create_task(rendering)]
            try:
                async with asyncio.timeout(120):
                    await act()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())

    async def store(self, *resources: Resource) -> None:
        for resource in resources:
            await self.backend.apply(ResourceKey(resource.KIND, resource.name), resource)

    async def claim(self, cidr: str, state: str = "confirmed", host: str = "kube-master") -> None:
        await self.backend.apply(AffinityKey(cidr, host), Affinity(state=state))

    @property
    def conf(self) -> str:
        path = self.folder / "exabgp.conf"
        return path.read_text() if path.exists() else ""

    @property
    def config(self) -> Config | None:
        return load(str(self.folder / "bgp.json"))

    def blocks(self) -> set[str]:
        return {block.cidr for block in self.config.blocks} if self.config else set()

    def peers(self) -> set[str]:
        return {one.address for one in self.config.peers} if self.config else set()

    def nudges(self) -> int:
        """How often the agent was told since the last call."""
        count = 0
        while True:
            try:
                self._agent.recv(10)
            except BlockingIOError:
                return count
            count += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.01)

    async def start(self, *more: Resource) -> None:
        """NODES, a pool and what else there is are stored and in the files: a busy machine may render
        before all of it has come in."""
        await self.store(*NODES, POOL, *more)
        await self.until(lambda: len(self.peers()) == 2 and bool(self.config and self.config.pools))

    async def quiet(self) -> None:
        """Long enough for a rendering, had there been a reason for one."""
        for _ in range(20):
            await asyncio.sleep(0.02)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CALICO_CONFD_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_files_follow_the_datastore(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.store(*NODES, POOL)
        await daemon.claim("192.168.1.0/26")
        await daemon.claim("192.168.9.0/26", host="kube-node-1")
        await daemon.until(lambda: daemon.peers() == {"10.192.0.3", "10.192.0.10"})
        await daemon.until(lambda: daemon.blocks() == {"192.168.1.0/26"})
        assert daemon.conf.count("neighbor 10.192.0.") == 2
        assert os.stat(daemon.folder / "exabgp.conf").st_mode & 0o777 == 0o600
        await daemon.backend.delete(ResourceKey("Node", "kube-node-1"))
        await daemon.until(lambda: daemon.peers() == {"10.192.0.10"})

    daemon.run(act)


def test_a_block_touches_only_the_agents_file(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.start()
        before = os.stat(daemon.folder / "exabgp.conf")
        daemon.nudges()
        await daemon.claim("192.168.1.0/26")
        await daemon.until(lambda: daemon.blocks() == {"192.168.1.0/26"})
        after = os.stat(daemon.folder / "exabgp.conf")
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        assert daemon.nudges() == 1

    daemon.run(act)


def test_what_does_not_matter_writes_nothing(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.start()
        daemon.nudges()
        await daemon.store(NODES[1].with_metadata(labels={"new": "label"}))
        await daemon.claim("192.168.9.0/26", host="kube-node-1")
        await daemon.quiet()
        assert daemon.nudges() == 0

    daemon.run(act)


def test_a_burst_is_one_rendering(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortie.confd.daemon._SETTLE", 1.0)  # a burst of a busy machine takes a while

    async def act() -> None:
        await daemon.start()
        daemon.nudges()
        for ten in range(0, 100, 10):  # ten at once, so that even a busy machine takes it for one burst
            await asyncio.gather(*(daemon.claim(f"192.168.{ten + one}.0/26") for one in range(10)))
        await daemon.until(lambda: len(daemon.blocks()) == 100)
        assert daemon.nudges() <= 3

    daemon.run(act)


def test_a_restart_with_nothing_new_writes_nothing(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.start()

    async def again() -> None:
        daemon.nudges()
        await daemon.quiet()
        assert daemon.nudges() == 0

    daemon.run(act)
    daemon.run(again)


def test_hostile_data_is_told_once_and_stops_nothing(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    evil = '"; }\nprocess evil { run /bin/sh; }'

    async def act() -> None:
        await daemon.start()
        root = "/calico/resources/v3/projectcalico.org/"
        await daemon.backend.put_raw(f"{root}nodes/broken", "{ not json")
        await daemon.backend.put_raw(f"{root}bgppeers/{evil.replace('/', '_')}", "[]")
        await daemon.store(
            node("n4", f"10.192.0.4/16{evil}"),
            peer("p5", peerIP=f"10.192.0.5{evil}", asNumber=65005),
            pool("p6", f"10.0.0.0/8{evil}"),
            peer("p7", peerIP="10.192.0.7", asNumber=65007),
        )
        await daemon.until(lambda: "10.192.0.7" in daemon.peers())
        await daemon.store(*NODES, NO_MESH)
        await daemon.until(lambda: daemon.peers() == {"10.192.0.7"})
        assert "evil" not in daemon.conf and "evil" not in (daemon.folder / "bgp.json").read_text()

    daemon.run(act)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == len(set(told)), "each is told once"
    for name in ("nodes/broken", "n4", "p5", "p6"):
        assert any(name in line for line in told), name


def test_a_node_that_is_gone_keeps_its_files(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        await daemon.start()
        before = daemon.conf
        await daemon.backend.delete(ResourceKey("Node", "kube-master"))
        await daemon.until(lambda: "no such node" in caplog.text)
        assert daemon.conf == before and len(daemon.peers()) == 2
        await daemon.store(MASTER, node("n4", "10.192.0.4/16"))
        await daemon.until(lambda: "10.192.0.4" in daemon.peers())

    daemon.run(act)


def test_the_datastore_goes_away_and_comes_back(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.start()
        daemon.nudges()
        daemon.backend.away = True
        daemon.backend.drop_watches()
        await daemon.quiet()
        assert len(daemon.peers()) == 2 and daemon.nudges() == 0
        daemon.backend.away = False
        await daemon.claim("192.168.1.0/26")
        await daemon.until(lambda: daemon.blocks() == {"192.168.1.0/26"})

    daemon.run(act)


def test_what_exabgp_refuses_is_not_installed(daemon: Daemon) -> None:
    """Our own rendering never is refused, so the refusal is played."""
    refusals = []

    async def refuse(path: str, *_judge: object) -> None:
        assert os.stat(path).st_mode & 0o777 == 0o600
        refusals.append(path)
        raise ConfigError("exabgp.conf", "", "ExaBGP refuses it: because")

    async def act() -> None:
        await daemon.start()
        before = daemon.conf
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "check", refuse)
            await daemon.store(node("n4", "10.192.0.4/16"))
            await daemon.until(lambda: bool(refusals))
            await daemon.quiet()
        assert daemon.conf == before and len(daemon.peers()) == 2, "both files stay: they belong together"
        assert [path.name for path in daemon.folder.iterdir() if path.name.startswith(".")] == []
        await daemon.until(lambda: "10.192.0.4" in daemon.peers())  # it tries again by itself

    daemon.run(act)


def test_a_bird_that_does_not_answer_has_its_new_files(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(daemon.folder)

    async def act() -> None:
        async with await asyncio.start_unix_server(lambda _, writer: writer.close(), f"{folder}/bird.ctl"):
            await daemon.store(*NODES, POOL)
            await daemon.until(lambda: "BIRD does not answer" in caplog.text)
        assert os.path.exists(f"{folder}/bird.cfg") and "keeping the files" not in caplog.text

    where = {"CALICO_RUN_DIR": folder, "CALICO_CONFD_CONFIG_DIR": folder}
    daemon.run(act, CALICO_NETWORKING_BACKEND="bird", **where)


def test_half_a_snapshot_is_not_rendered(daemon: Daemon) -> None:
    """Watching failed and begins anew while a rendering is due again: the blocks must not go meanwhile."""
    refusals = []

    async def refuse(path: str, *_judge: object) -> None:
        refusals.append(path)
        raise ConfigError("exabgp.conf", "", "ExaBGP refuses it: because")

    async def without_blocks(_operation: str, subject: object) -> None:
        if isinstance(subject, AffinityList):
            await asyncio.Event().wait()

    async def main() -> None:
        await daemon.store(*NODES, POOL)
        await daemon.claim("192.168.1.0/26")
        confd = Confd(daemon.backend, "kube-master", {"FELIX_CONFIGFILE": "/nonexistent"})
        tasks = [asyncio.create_task(confd.render()), asyncio.create_task(confd.watch())]
        await daemon.until(lambda: daemon.blocks() == {"192.168.1.0/26"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "check", refuse)
            await daemon.store(node("n4", "10.192.0.4/16"))
            await daemon.until(lambda: bool(refusals))
            await cancel(tasks[1:])
        daemon.backend.before = without_blocks
        tasks.append(asyncio.create_task(confd.watch()))
        for _ in range(5):  # longer than the second until the rendering is due
            await daemon.quiet()
        assert daemon.blocks() == {"192.168.1.0/26"}
        await cancel(tasks)

    asyncio.run(main())


def test_the_real_check(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("process agent { run /bin/true; encoder json; }\n")
    bad.write_text("process agent { run /nowhere/x; encoder json; }\n")
    asyncio.run(files.check(str(good)))
    with pytest.raises(ConfigError, match=r"ExaBGP refuses it.*can not locate the program"):
        asyncio.run(files.check(str(bad)))


def test_felix_settings_are_read_as_felix_reads_them(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.start()
        assert daemon.config is not None and not daemon.config.pools[0].programmed

    daemon.run(act, FELIX_PROGRAMCLUSTERROUTES="Enabled")


@pytest.mark.parametrize("wrong", [{"bpfEnabled": 5}, {"iptablesMarkMask": "0x0"}])
def test_one_wrong_field_hides_no_other_of_felixs(daemon: Daemon, wrong: dict[str, Any]) -> None:
    """Felix goes on with the others; routes that it then makes must not be BGP's as well."""

    async def act() -> None:
        await daemon.start(felix(programClusterRoutes="Enabled", **wrong))
        await daemon.until(lambda: daemon.config is not None and not daemon.config.pools[0].programmed)

    daemon.run(act)


def test_the_router_id_of_the_environment(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.store(*NODES, POOL)
        await daemon.until(lambda: daemon.config is not None)
        assert daemon.config is not None and daemon.config.local.router_id == "9.9.9.9"

    daemon.run(act, CALICO_ROUTER_ID="9.9.9.9")


def test_what_a_failed_run_did_not_write_the_next_one_writes(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody expects, a thread that cannot be had, ends the loop amid its work."""
    install, failures = files.ExaBgp.install, iter([RuntimeError("can't start new thread")])

    async def fails_once(self: files.ExaBgp, made: Any) -> Any:
        if (err := next(failures, None)) is not None:
            raise err
        return await install(self, made)

    async def act() -> None:
        await daemon.store(MASTER, POOL)
        await daemon.until(lambda: bool(daemon.conf))

    monkeypatch.setattr(files.ExaBgp, "install", fails_once)
    daemon.run(act)

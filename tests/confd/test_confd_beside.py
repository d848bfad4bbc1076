"""Services and Secrets that confd follows beside its snapshot: when it asks for them, and when it waits."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.confd.confd_cases import MASTER, configuration, node, password
from tests.support.memory_backend import MemoryBackend
from tortie.bgp.config import load
from tortie.confd.beside import Beside
from tortie.confd.daemon import Confd
from tortie.core.backoff import Backoff
from tortie.core.errors import DatastoreUnreachable, Unauthorized
from tortie.core.tasks import cancel
from tortie.datastore import syncer
from tortie.datastore.keys import ResourceKey
from tortie.datastore.nativekeys import KUBERNETES_ONLY, SecretKey, SecretList, ServiceKey, SliceKey
from tortie.datastore.types.bgp import CIDRBlock
from tortie.datastore.types.meta import ObjectMeta, Resource
from tortie.datastore.types.service import (
    SERVICE_LABEL,
    Endpoint,
    EndpointSlice,
    Secret,
    Service,
    ServiceSpec,
)

pytestmark = pytest.mark.unit

SERVICE = Service(
    metadata=ObjectMeta(name="web", namespace="shop"),
    spec=ServiceSpec(clusterIP="10.96.0.10", externalTrafficPolicy="Local"),
)
BEHIND = EndpointSlice(
    metadata=ObjectMeta(name="web-x", namespace="shop", labels={SERVICE_LABEL: "web"}),
    addressType="IPv4",
    endpoints=(Endpoint(addresses=("10.0.0.1",), nodeName=MASTER.name),),
)
WEB, WEB_BEHIND = ServiceKey("shop", "web"), SliceKey("shop", "web-x")
RANGES = configuration(serviceClusterIPs=(CIDRBlock(cidr="10.96.0.0/16"),))
TOLD, RANGE = "10.96.0.10/32", "10.96.0.0/16"


class Daemon:
    """A Confd with an API beside its datastore; `asked` are the listings that it asked the API for."""

    def __init__(self, folder: Path) -> None:
        self.backend, self.api = MemoryBackend(), MemoryBackend()
        self.folder = folder
        self.asked: list[Any] = []
        self.failure: Exception | None = None  # of every listing of the API
        self.api.before = self._before

    async def _before(self, operation: str, what: Any) -> None:
        if operation == "list":
            self.asked.append(what)
            if self.failure is not None:
                raise self.failure

    async def store(self, *resources: Resource) -> None:
        for resource in resources:
            await self.backend.apply(ResourceKey(resource.KIND, resource.name), resource)

    def run(self, act: Callable[[], Awaitable[None]], **environment: str) -> None:
        async def main() -> None:
            given = {
                "FELIX_CONFIGFILE": "/nonexistent",
                "TORTIE_SECRETS_DIR": str(self.folder),
                **environment,
            }
            confd = Confd(self.backend, MASTER.name, given, self.api)
            loops = (confd.watch, confd.render, confd.beside.run)
            running = [asyncio.create_task(loop()) for loop in loops]
            try:
                async with asyncio.timeout(240):
                    await act()
            finally:
                await cancel(running)

        asyncio.run(main())

    def services(self) -> set[str] | None:
        config = load(str(self.folder / "bgp.json"))
        return None if config is None else set(config.services)

    @property
    def conf(self) -> str:
        path = self.folder / "exabgp.conf"
        return path.read_text() if path.exists() else ""

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setenv("CALICO_CONFD_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(syncer, "_RETRY", Backoff(first=0.05, cap=0.2))
    return Daemon(tmp_path)


def test_a_service_is_announced_and_withdrawn_with_its_last_endpoint(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.store(MASTER, RANGES)
        daemon.api.write({WEB: SERVICE, WEB_BEHIND: BEHIND})
        await daemon.until(lambda: daemon.services() == {RANGE, TOLD})
        daemon.api.write({WEB_BEHIND: None})
        await daemon.until(lambda: daemon.services() == {RANGE})
        daemon.api.write({WEB_BEHIND: BEHIND})
        await daemon.until(lambda: daemon.services() == {RANGE, TOLD})
        daemon.api.write({WEB: None})
        await daemon.until(lambda: daemon.services() == {RANGE})

    daemon.run(act)


def test_an_endpoint_is_on_the_node_that_kubernetes_knows_by_another_name(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.store(MASTER, RANGES)
        daemon.api.write({WEB: SERVICE, WEB_BEHIND: BEHIND})
        await daemon.until(lambda: daemon.services() == {RANGE})

    daemon.run(act, CALICO_K8S_NODE_REF="elsewhere")


def test_nothing_is_asked_of_the_api_until_something_is_announced(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.store(MASTER)
        daemon.api.write({WEB: SERVICE, WEB_BEHIND: BEHIND})
        await daemon.until(lambda: daemon.services() == set())
        assert daemon.asked == []
        await daemon.store(RANGES)
        await daemon.until(lambda: daemon.services() == {RANGE, TOLD})
        await daemon.store(configuration())
        await daemon.until(lambda: daemon.services() == set())
        assert all(isinstance(one, KUBERNETES_ONLY) for one in daemon.asked)

    daemon.run(act)


def password_line(value: bytes) -> str:
    return f'md5-password "{b64encode(value).decode()}";'


def secret(value: bytes) -> Secret:
    return Secret(metadata=ObjectMeta(name="bgp", namespace="kube-system"), data={"password": value})


SECRET = SecretKey("kube-system", "bgp")
MESH = (MASTER, node("other", "10.192.0.9/16"), configuration(nodeMeshPassword=password()))


def test_a_password_comes_from_the_one_secret_that_is_named(daemon: Daemon) -> None:
    async def act() -> None:
        await daemon.store(*MESH)
        daemon.api.write({SECRET: secret(b"one\n"), SecretKey("kube-system", "other"): secret(b"two")})
        await daemon.until(lambda: password_line(b"one") in daemon.conf)
        assert daemon.asked == [SecretList("kube-system", "bgp")]
        daemon.api.write({SECRET: secret(b"rotated")})
        await daemon.until(lambda: password_line(b"rotated") in daemon.conf)

    daemon.run(act)


def test_a_secret_that_is_a_file_is_not_asked_for(daemon: Daemon) -> None:
    (daemon.folder / "bgp").mkdir()
    (daemon.folder / "bgp" / "password").write_bytes(b"file")

    async def act() -> None:
        await daemon.store(*MESH)
        daemon.api.write({SECRET: secret(b"api")})
        await daemon.until(lambda: password_line(b"file") in daemon.conf)
        assert daemon.asked == []

    daemon.run(act)


def test_no_session_loses_its_password_to_an_api_that_does_not_answer(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async def act() -> None:
        daemon.failure = DatastoreUnreachable("away")
        await daemon.store(*MESH)
        daemon.api.write({SECRET: secret(b"one")})
        await daemon.until(lambda: len(daemon.asked) > 1)
        assert daemon.conf == ""
        daemon.failure = None
        await daemon.until(lambda: password_line(b"one") in daemon.conf)

    caplog.set_level(logging.INFO)
    daemon.run(act)
    said = "the files stay as they are until the Kubernetes API has told of /api/v1/namespaces/kube-system/"
    assert caplog.text.count(said + "secrets/bgp") == 1


def test_what_a_follower_knew_counts_no_more_when_it_starts_anew() -> None:
    """Its objects are gone then, and a session would lose its password."""
    api, what = MemoryBackend(), SecretList("kube-system", "bgp")
    api.write({SECRET: secret(b"one")})
    failing = [RuntimeError("a bug")]
    seen: list[list[str]] = []  # what was awaited when the follower started

    async def main() -> None:
        def changed() -> None:
            if beside.awaited == [] and failing:
                raise failing.pop()

        async def before(operation: str, _what: object) -> None:
            if operation == "list":
                seen.append(beside.awaited)

        api.before = before
        beside = Beside(api, changed)
        beside.want([what])
        running = asyncio.create_task(beside.run())
        async with asyncio.timeout(60):
            while len(seen) < 2 or beside.awaited:
                await asyncio.sleep(0.01)
        assert dict(beside.objects())[SECRET].data == {"password": b"one"}
        await cancel([running])

    asyncio.run(main())
    assert seen == [[what.prefix()]] * 2


def test_an_api_that_refuses_keeps_no_session_from_being(daemon: Daemon) -> None:
    async def act() -> None:
        daemon.failure = Unauthorized('secrets "bgp" is forbidden')
        await daemon.store(*MESH)
        await daemon.until(lambda: "neighbor 10.192.0.9" in daemon.conf)
        assert "md5" not in daemon.conf
        daemon.failure = None
        daemon.api.write({SECRET: secret(b"one")})
        await daemon.until(lambda: password_line(b"one") in daemon.conf)

    daemon.run(act)

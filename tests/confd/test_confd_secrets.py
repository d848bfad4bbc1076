"""Passwords in files: which are read, which names lead nowhere, and that a new one reaches the session."""

import asyncio
from base64 import b64encode
from pathlib import Path

import pytest

from tests.confd.confd_cases import MASTER, NODES, cluster, configuration, node, password, peer
from tests.support.memory_backend import MemoryBackend
from tortie.confd import secrets
from tortie.confd.daemon import Confd
from tortie.core.tasks import cancel
from tortie.datastore.keys import ResourceKey

pytestmark = pytest.mark.unit


def write(folder: Path, secret: str, key: str, content: bytes) -> None:
    (folder / secret).mkdir(exist_ok=True)
    (folder / secret / key).write_bytes(content)


def test_what_the_cluster_names_and_is_there(tmp_path: Path) -> None:
    write(tmp_path, "bgp", "mesh", b"one\n")
    write(tmp_path, "bgp", "tor", b" two \r\n")
    write(tmp_path, "bgp", "unnamed", b"three")
    snapshot = cluster(
        *NODES,
        configuration(nodeMeshPassword=password("bgp", "mesh")),
        peer("tor", peerIP="10.0.0.1", asNumber=1, password=password("bgp", "tor")),
        peer("other", peerIP="10.0.0.2", asNumber=1, password=password("absent", "tor")),
    )
    problems: list[str] = []
    found = secrets.read(snapshot, str(tmp_path), problems)
    assert found == {("bgp", "mesh"): b"one", ("bgp", "tor"): b" two "} and not problems


@pytest.mark.parametrize("name", ["..", ".", "../other", "/etc", "a/b", "a\0b", "", "x" * 254])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "passwords" / "bgp").mkdir(parents=True)
    (tmp_path / "key").write_bytes(b"not yours")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "key").write_bytes(b"not yours")
    for secret, key in ((name, "key"), ("bgp", name)):
        snapshot = cluster(*NODES, configuration(nodeMeshPassword=password(secret, key)))
        problems: list[str] = []
        assert secrets.read(snapshot, str(tmp_path / "passwords"), problems) == {}
        assert problems == [f"secret {secret!r}, key {key!r}: not a plain name"]


def test_a_folder_in_place_of_a_password_is_said(tmp_path: Path) -> None:
    (tmp_path / "bgp" / "key").mkdir(parents=True)
    problems: list[str] = []
    snapshot = cluster(*NODES, configuration(nodeMeshPassword=password("bgp", "key")))
    assert secrets.read(snapshot, str(tmp_path), problems) == {}
    assert problems == [f"password in {tmp_path}/bgp/key cannot be read: Is a directory"]


def test_a_changed_password_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALICO_CONFD_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    environment = {"TORTIE_SECRETS_DIR": str(tmp_path), "FELIX_CONFIGFILE": "/nonexistent"}
    backend = MemoryBackend()

    async def rendered(confd: Confd, content: bytes) -> None:
        wanted = f'md5-password "{b64encode(content).decode()}";' if content else "neighbor 10.192.0.9"
        conf = tmp_path / "exabgp.conf"
        async with asyncio.timeout(120):
            while not conf.exists() or wanted not in (text := conf.read_text()):
                confd.look_at_secrets()
                await asyncio.sleep(0.02)
        assert content or "md5" not in text

    async def act() -> None:
        resources = (
            MASTER,
            node("other", "10.192.0.9/16"),
            configuration(nodeMeshPassword=password()),
        )
        for resource in resources:
            await backend.apply(ResourceKey(resource.KIND, resource.name), resource)
        confd = Confd(backend, MASTER.name, environment)
        running = [asyncio.create_task(confd.watch()), asyncio.create_task(confd.render())]
        try:
            await rendered(confd, b"")
            write(tmp_path, "bgp", "password", b"first")
            await rendered(confd, b"first")
            write(tmp_path, "bgp", "password", b"second")
            await rendered(confd, b"second")
        finally:
            await cancel(running)

    asyncio.run(act())

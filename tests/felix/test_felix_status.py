"""Status files and keys: Calico's names and fields, kept as they should be."""

import asyncio
import json
from pathlib import Path

import pytest

from tortie.core.errors import DatastoreUnreachable, ResourceDoesNotExist
from tortie.core.reconcile import Reconciler
from tortie.datastore.backend import KV, Listed
from tortie.datastore.keys import ProcessStatusKey, WorkloadStatusKey
from tortie.datastore.types.ipam import EndpointStatus
from tortie.felix.calc.model import Workload, WorkloadId
from tortie.felix.status import ProcessReports, StatusFiles, StatusKeys, file_content, file_name

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ident", "expected"),
    [
        (WorkloadId("k8s", "default/nginx", "eth0"), "k8s default%2Fnginx eth0"),
        (WorkloadId("k8s", "a b/c?=+", "eth0"), "k8s a%20b%2Fc%3F=+ eth0"),
        (WorkloadId("cni", "ns/../../etc", "eth0"), "cni ns%2F..%2F..%2Fetc eth0"),
    ],
)
def test_file_names_are_calicos_and_stay_in_the_folder(ident: WorkloadId, expected: str) -> None:
    assert file_name(ident) == expected


def test_files_say_what_cni_and_confd_read() -> None:
    ident = WorkloadId("k8s", "default/nginx", "eth0")
    full = Workload(ident, "cali1", ("10.0.0.1/32", "fd00::1/128"), mac="aa:bb:cc:dd:ee:ff")
    assert json.loads(file_content(full)) == {
        "ifaceName": "cali1",
        "mac": "aa:bb:cc:dd:ee:ff",
        "ipv4Nets": ["10.0.0.1/32"],
        "ipv6Nets": ["fd00::1/128"],
    }
    assert json.loads(file_content(Workload(ident, "cali1"))) == {"ifaceName": "cali1"}


def test_the_folder_holds_what_is_up_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "endpoint-status"
    files = Reconciler("files", StatusFiles(str(folder)))
    files.want({"a": b"1", "b": b"2"})
    assert asyncio.run(files.sync()).ok
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "a").stat().st_mode & 0o777 == 0o644
    (folder / "a").write_bytes(b"changed")
    (folder / "stale").write_bytes(b"")
    (folder / ".a.tmp").write_bytes(b"half")
    files.want({"a": b"1"})
    files.forget()
    assert asyncio.run(files.sync()).ok
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1"}


def test_a_name_too_long_for_a_file_fails_alone(tmp_path: Path) -> None:
    files = Reconciler("files", StatusFiles(str(tmp_path)))
    files.want({"x" * 300: b"1", "b": b"2"})
    outcome = asyncio.run(files.sync())
    assert list(outcome.failed) == ["x" * 300]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


class FakeBackend:
    """A datastore in a dictionary that can be away."""

    def __init__(self) -> None:
        self.stored: dict[object, object] = {}
        self.ttl: dict[object, float | None] = {}
        self.away = False

    async def list(self, what: object, revision: str = "") -> Listed:
        if self.away:
            raise DatastoreUnreachable("away")
        return Listed([KV(key, value, "1") for key, value in self.stored.items()], "1")  # type: ignore[arg-type]

    async def apply(self, key: object, value: object, ttl: float | None = None) -> None:
        if self.away:
            raise DatastoreUnreachable("away")
        self.stored[key], self.ttl[key] = value, ttl

    async def delete(self, key: object, revision: str = "") -> None:
        if key not in self.stored:
            raise ResourceDoesNotExist(key)
        del self.stored[key]


def key(name: str) -> WorkloadStatusKey:
    return WorkloadStatusKey("node1", "k8s", f"default/{name}", "eth0")


def test_status_keys_follow_the_endpoints_and_survive_an_outage() -> None:
    backend = FakeBackend()
    backend.stored[key("stale")] = EndpointStatus(status="up")
    keys = Reconciler("keys", StatusKeys(backend, "node1", "no-region"), clock=lambda: clock)  # type: ignore[arg-type]
    clock = 0.0
    keys.want({key("a"): "up", key("b"): "down"})
    assert asyncio.run(keys.sync()).ok
    assert backend.stored == {key("a"): EndpointStatus(status="up"), key("b"): EndpointStatus(status="down")}
    backend.away = True
    keys.want({key("a"): "down"})
    keys.forget()
    assert not asyncio.run(keys.sync()).ok
    backend.away, clock = False, 100.0
    assert asyncio.run(keys.sync()).ok
    assert backend.stored == {key("a"): EndpointStatus(status="down")}


def test_the_process_reports_itself_with_and_without_a_lease() -> None:
    backend, now = FakeBackend(), 1000.0
    reports = ProcessReports(backend, "node1", "no-region", 90, now=lambda: now)  # type: ignore[arg-type]
    asyncio.run(reports.report())
    now += 30
    asyncio.run(reports.report())
    fading, staying = ProcessStatusKey("node1"), ProcessStatusKey("node1", last=True)
    assert (backend.ttl[fading], backend.ttl[staying]) == (90, None)
    status = backend.stored[fading]
    assert (status.time, status.uptime, status.first_update) == ("1970-01-01T00:17:10Z", 30, False)  # type: ignore[attr-defined]

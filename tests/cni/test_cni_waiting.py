"""Files of the node, waiting, turns and log files."""

import asyncio
import gzip
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.netns_lab import eventually
from tortie.cni import waiting
from tortie.cni.journal import JournalHandler, Limits, LogFile, expired, severity_level
from tortie.cni.locks import Locks
from tortie.cni.netconf import NetConf
from tortie.cni.node import endpoint_status_path, mtu, node_name
from tortie.core.errors import CniError, ConfigError
from tortie.core.paths import Paths

pytestmark = pytest.mark.unit


def conf(**fields: Any) -> NetConf:
    return msgspec.convert({"name": "net", "ipam": {"type": "calico-ipam"}} | fields, NetConf)


# --- files of the node -----------------------------------------------------------------------------


def test_where_felix_says_what_is_up() -> None:
    moved = Paths.from_env({"CALICO_RUN_DIR": "/r"})
    assert endpoint_status_path(conf(), moved, "x") == "/r/endpoint-status/x"
    assert endpoint_status_path(conf(endpoint_status_dir="/d"), moved, "x") == "/d/x"


def test_the_nodes_name(tmp_path: Path) -> None:
    paths = Paths(nodename=str(tmp_path / "nodename"))
    with pytest.raises(CniError, match="check that the calico/node container is running"):
        node_name(conf(nodename="given"), paths, "own")
    assert node_name(conf(nodename_file_optional=True, hostname="old"), paths, "own") == "old"
    assert node_name(conf(nodename_file_optional=True), paths, "own") == "own"
    (tmp_path / "nodename").write_text("from-file\n")
    assert node_name(conf(hostname="old"), paths, "own") == "from-file"
    assert node_name(conf(nodename="given"), paths, "own") == "given"
    (tmp_path / "other").write_text("other")
    assert node_name(conf(nodename_file=str(tmp_path / "other")), paths, "own") == "other"
    for wrong in ("a b", "a/b", "a\nb", "ä", "Upper"):
        (tmp_path / "nodename").write_text(wrong)
        with pytest.raises(ConfigError):
            node_name(conf(), paths, "own")
    with pytest.raises(CniError):
        node_name(conf(nodename_file=str(tmp_path)), paths, "own")


@pytest.mark.parametrize("text", ["", "x", "-1", "123456", "1500\n1500", "١٥٠٠"])
def test_an_mtu_file_that_holds_no_number(tmp_path: Path, text: str) -> None:
    (tmp_path / "mtu").write_text(text)
    with pytest.raises(CniError, match="failed to read MTU file"):
        mtu(conf(), Paths(lib=str(tmp_path)))
    assert mtu(conf(mtu=1400), Paths(lib=str(tmp_path))) == 1400


# --- waiting ---------------------------------------------------------------------------------------


def test_the_name_of_a_status_file() -> None:
    assert waiting.status_file("k8s", "default/testpod1", "eth0") == "k8s default%2Ftestpod1 eth0"
    assert waiting.status_file("k8s", "a b/%", "eth@0") == "k8s a%20b%2F%25 eth@0"


def test_waiting_for_a_file(tmp_path: Path) -> None:
    assert not asyncio.run(waiting.for_file(str(tmp_path / "x"), 0.05))
    (tmp_path / "x").touch()
    assert asyncio.run(waiting.for_file(str(tmp_path / "x"), 0))


def gates(*answers: str) -> tuple[list[str], list[float]]:
    """Which URLs were asked, and the pauses, if the probes say these things one after the other."""
    asked: list[str] = []
    pauses: list[float] = []
    left = list(answers)

    async def probe(url: str, _timeout: float) -> str:
        asked.append(url)
        return left.pop(0)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    asyncio.run(waiting.for_gates(["http://a", "http://b"], probe, sleep))
    return asked, pauses


def test_gates_are_asked_until_they_open() -> None:
    assert gates("", "") == (["http://a", "http://b"], [])
    assert gates("no", "no", "", "") == (["http://a"] * 3 + ["http://b"], [5.0, 5.0])


def test_a_gate_that_stays_shut() -> None:
    with pytest.raises(CniError, match="http://a is not ready after 30 s: shut") as caught:
        gates(*["shut"] * 6)
    assert caught.value.code == 11


@pytest.fixture
def web() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_which_http_answers_are_ready(web: str) -> None:
    for status in (200, 204, 304):
        assert asyncio.run(waiting.http_status(f"{web}/{status}", 60)) == ""
    for status in (404, 503):
        assert f"code returned:{status}" in asyncio.run(waiting.http_status(f"{web}/{status}", 60))
    assert "refused" in asyncio.run(waiting.http_status("http://127.0.0.1:1", 60))


def test_a_lock_file_that_others_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "a" / "lock")

    async def both() -> None:
        async with waiting.file_lock(path), waiting.file_lock(path, patience=0.05):
            pass

    asyncio.run(both())
    assert "Failed to grab IPAM lock" in caplog.text

    async def one_after_the_other() -> None:
        for _ in range(2):
            async with waiting.file_lock(path, patience=0):
                pass

    caplog.clear()
    asyncio.run(one_after_the_other())
    assert not caplog.text


# --- locks -----------------------------------------------------------------------------------------


def test_calls_for_one_container_or_pod_take_turns() -> None:
    order: list[str] = []

    async def call(name: str, *keys: str) -> None:
        async with locks.hold(*keys):
            order.append(f"+{name}")
            await asyncio.sleep(0.01)
            order.append(f"-{name}")

    locks = Locks()

    async def main() -> None:
        await asyncio.gather(call("a", "c1", "pod"), call("b", "c2", "pod"), call("c", "c3", "other"))

    asyncio.run(main())
    assert order.index("-a") < order.index("+b") and order.index("+c") < order.index("-a")
    assert not locks.busy("c1") and not locks._locks


def test_a_lock_is_let_go_when_its_holder_fails_or_gives_up() -> None:
    locks = Locks()

    async def fail() -> None:
        async with locks.hold("a", "b"):
            assert locks.busy("a")
            raise ValueError("mine")

    async def main() -> None:
        async with locks.hold("a"):
            waiter = asyncio.create_task(fail())
            await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.wait([waiter])
        with pytest.raises(ValueError, match="mine"):
            await fail()

    asyncio.run(main())
    assert not locks.busy("a") and not locks._locks


# --- logs ------------------------------------------------------------------------------------------


def test_limits_as_configured() -> None:
    assert Limits.configured(0, 0, 0) == Limits(100 * 1024 * 1024, 30 * 86400.0, 10)
    assert Limits.configured(1, 2, 3) == Limits(1024 * 1024, 2 * 86400.0, 3)


def test_which_old_files_go() -> None:
    old = [("b", 10.0), ("d", 30.0), ("c", 20.0), ("a", 5.0)]
    assert expired(old, Limits(count=2, age=100), now=40) == ["b", "a"]
    assert expired(old, Limits(count=9, age=25), now=40) == ["b", "a"]
    assert expired(old, Limits(), now=40) == []
    assert expired([("1", 30.0), ("2", 20.0), ("3", 30.0)], Limits(count=2), now=40) == ["1"]


def test_a_full_file_is_put_away_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**18, 0, -(10**9)))  # even if the clock is set back each time
    monkeypatch.setattr("tortie.cni.journal.time.time_ns", lambda: next(now))
    log = LogFile(str(tmp_path / "cni.log"), Limits(size=100, count=2))
    for number in range(8):
        log.write(f"{number} {'x' * 60}\n")
        eventually(lambda: not list(tmp_path.glob("cni-*.log")))
    log.close()
    eventually(lambda: len(list(tmp_path.glob("cni-*.log.gz"))) == 2)  # the eldest go last of all
    old = sorted(tmp_path.glob("cni-*.log.gz"))
    assert [gzip.decompress(path.read_bytes())[:1] for path in old] == [b"5", b"6"]
    assert (tmp_path / "cni.log").read_text().startswith("7 ")


def test_a_file_that_was_moved_or_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "cni.log"
    log = LogFile(str(path), Limits())
    log.write("first\n")
    path.rename(tmp_path / "moved")
    log.write("second\n")
    assert ((tmp_path / "moved").read_text(), path.read_text()) == ("first\n", "second\n")
    path.unlink()
    log.write("third\n")
    log.close()
    assert path.read_text() == "third\n"


def test_a_line_longer_than_a_file(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "cni.log"), Limits(size=10))
    log.write("x" * 50)
    assert (tmp_path / "cni.log").stat().st_size == 50


def test_trouble_with_a_file_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    log = LogFile(str(tmp_path / "file" / "cni.log"), Limits())
    for _ in range(3):
        log.write("x\n")
    assert caplog.text.count("cannot write the log file") == 1


def test_a_calls_lines_and_no_others(tmp_path: Path) -> None:
    handler, told = JournalHandler(), list[str]()
    logger = logging.getLogger("tortie.test.journal")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        logger.info("before")
        with handler.during("info", str(tmp_path / "log"), Limits(), told.append):
            logger.info("during %s", "x\ny")
            logger.debug("too quiet")
            thread = threading.Thread(target=lambda: logger.info("elsewhere"))
            thread.start()
            thread.join()
        with handler.during("error", "", Limits(), told.append):
            logger.info("not asked for")
            logger.error("asked for")
        logger.info("after")
    finally:
        logger.removeHandler(handler)
    assert len(told) == 2 and "during x\n    y\n" in told[0] and "asked for" in told[1]
    assert (tmp_path / "log").read_text() == told[0]


def test_severities() -> None:
    assert severity_level("DEBUG") == logging.DEBUG and severity_level("Error") == logging.ERROR
    assert severity_level("warning") == severity_level("") == logging.INFO

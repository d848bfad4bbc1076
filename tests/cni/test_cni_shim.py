"""The binary alone: what it does without a server, with a bad one, and what travels between the two."""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tortie.cni import wire
from tortie.cni.wire import Request

pytestmark = pytest.mark.kernel

ADD = {"CNI_COMMAND": "ADD", "CNI_PATH": "/nowhere"}


def run(
    shim: Path, path: Path, environment: dict[str, str], stdin: bytes = b"{}", *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    settings = {"TORTIE_CNI_SOCKET": str(path), **environment}
    return subprocess.run(
        [shim, *arguments], env=settings, input=stdin, capture_output=True, check=False, timeout=300
    )


def error(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 1 and done.stderr == b""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Peer:
    """A server of our own making: `serve(connection, request, descriptors)` for each shim."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.requests: list[Request] = []
        self.descriptors: list[int] = []
        self.done: list[tuple[int, bytes]] = []

    def answer(self, *frames: bytes, after: Callable[[], object] = lambda: None) -> threading.Thread:
        """Serve one shim: read its request, send the frames (reading the answer to each EXECUTE), close."""

        def serve() -> None:
            connection, _ = self._listener.accept()
            with connection:
                self.requests.append(wire.decode_request(self._frame(connection)))
                for one in frames:
                    connection.sendall(one)
                    if one[:1] == wire.EXECUTE:
                        self.done.append(wire.decode_done(self._frame(connection)))
                after()

        thread = threading.Thread(target=serve)
        thread.start()
        return thread

    def refuse(self, data: bytes) -> None:
        """Send data to one shim, and let it end by itself."""
        connection, _ = self._listener.accept()
        with connection:
            self._frame(connection)
            connection.sendall(data)
            assert connection.recv(1) == b""

    def _frame(self, connection: socket.socket) -> bytes:
        head, descriptors, _, _ = socket.recv_fds(connection, wire.HEADER.size, 4)
        self.descriptors += descriptors
        _, length = wire.header(head)
        data = b""
        while len(data) < length:
            data += connection.recv(length - len(data))
        return data

    def close(self) -> None:
        self._listener.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    one = Peer(tmp_path / "cni.sock")
    yield one
    one.close()


QUIT = wire.frame(wire.QUIT, b"\0")


# --- without a server ---------------------------------------------------------------------------


def test_version_needs_no_server(shim: Path, tmp_path: Path) -> None:
    done = run(shim, tmp_path / "none", {"CNI_COMMAND": "VERSION"})
    versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    assert json.loads(done.stdout) == {"cniVersion": "1.1.0", "supportedVersions": versions}
    assert done.returncode == 0 and done.stdout.endswith(b"\n")


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"x": [1], "cniVersion"\n:\t"1.1.0"', "1.1.0"),
        (b'{"cniVersion": 7}', "1.0.0"),
        (b'{"cniVersion": "1.0"evil"}', "1.0"),
        (b'{"cniVersion": "\\"}', "1.0.0"),
        (b'{"cniVersion": "11111111111111111111111"}', "1.0.0"),
        (b'{"cniVersion"', "1.0.0"),
        (b"", "1.0.0"),
    ],
)
def test_no_server_means_try_again_later(shim: Path, tmp_path: Path, stdin: bytes, version: str) -> None:
    path = tmp_path / "cni.sock"
    answer = error(run(shim, path, ADD, stdin))
    assert answer["code"] == 11 and answer["cniVersion"] == version
    assert f"cannot reach the CNI server at {path}: No such file or directory" in answer["msg"]


def test_what_json_cannot_hold_does_not_break_the_answer(shim: Path, tmp_path: Path) -> None:
    answer = error(run(shim, tmp_path / 'a"b\\c\n\x7f', ADD))
    assert answer["code"] == 11 and "a?b?c??" in answer["msg"]


def test_a_socket_path_that_is_too_long(shim: Path, tmp_path: Path) -> None:
    answer = error(run(shim, tmp_path / ("x" * 200), ADD))
    assert answer["code"] == 5 and "too long" in answer["msg"]


# --- what is sent -------------------------------------------------------------------------------


def test_the_request_says_everything(shim: Path, peer: Peer, tmp_path: Path) -> None:
    netns = tmp_path / "netns"
    netns.write_text("the very file")
    environment = {
        **ADD,
        "CNI_NETNS": str(netns),
        "CNI_ARGS": "A=1;B=ü",
        "PATH": "/bin",
        "HOME": "/secret",
    }
    stdin = b'{"a": "' + bytes(range(1, 256)) + b'"}\0' + b"x" * 300_000
    serving = peer.answer(QUIT)
    assert run(shim, peer.path, environment, stdin, "-a", "").returncode == 0
    serving.join()
    (request,) = peer.requests
    assert request.name == shim.name and request.arguments == ("-a", "")
    assert request.environment == {k: v for k, v in environment.items() if k != "HOME"}
    assert request.stdin == stdin and request.netns_errno == 0
    (descriptor,) = peer.descriptors
    assert os.pread(descriptor, 100, 0) == b"the very file"


def test_by_hand_it_reads_no_input(shim: Path, peer: Peer) -> None:
    """`calico -v` on a terminal must not wait for it."""
    reading, writing = os.pipe()
    serving = peer.answer(QUIT)
    settings = {"TORTIE_CNI_SOCKET": str(peer.path)}
    done = subprocess.run([shim, "-v"], env=settings, stdin=reading, check=False, timeout=300)
    serving.join()
    assert done.returncode == 0 and peer.requests[0].arguments == ("-v",)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0\0\0\xffx", wire.encode_execute("a", {}, b"")[5:-4], b"\0\0\0\1a\0\0\0\x0299\0\0\0\0"],
)
def test_a_malformed_order_to_run_a_plugin(shim: Path, peer: Peer, payload: bytes) -> None:
    listening = threading.Thread(target=peer.refuse, args=(wire.frame(wire.EXECUTE, payload),))
    listening.start()
    answer = error(run(shim, peer.path, ADD))
    listening.join()
    assert answer["code"] in (5, 11)


def test_a_namespace_that_is_not_there(shim: Path, peer: Peer) -> None:
    for path, errno in (("/no/such/file", 2), ("", 0)):
        serving = peer.answer(QUIT)
        run(shim, peer.path, {**ADD, "CNI_NETNS": path})
        serving.join()
        assert peer.requests[-1].netns_errno == errno and not peer.descriptors


def test_its_name_is_the_one_it_was_called_by(shim: Path, peer: Peer, tmp_path: Path) -> None:
    link = tmp_path / "calico-ipam"
    link.symlink_to(shim)
    serving = peer.answer(QUIT)
    run(link, peer.path, ADD)
    serving.join()
    assert peer.requests[0].name == "calico-ipam"


# --- what comes back ----------------------------------------------------------------------------


def test_output_errors_and_status(shim: Path, peer: Peer) -> None:
    text = os.urandom(200_000)
    serving = peer.answer(
        wire.frame(wire.ERRORS, b"hm\n") + wire.frame(wire.OUTPUT, text[:70_000]),
        wire.frame(wire.OUTPUT, text[70_000:]),
        wire.frame(wire.QUIT, b"\7"),
    )
    done = run(shim, peer.path, ADD)
    serving.join()
    assert (done.returncode, done.stdout, done.stderr) == (7, text, b"hm\n")


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (wire.QUIT,),
        (wire.frame(b"Z", b""),),
        (wire.frame(wire.QUIT, b""),),
        (wire.frame(wire.QUIT, b"12"),),
        (wire.HEADER.pack(wire.OUTPUT, 1 << 31),),
        (wire.HEADER.pack(wire.OUTPUT, 100) + b"x",),
    ],
)
def test_a_server_that_talks_nonsense_or_leaves(shim: Path, peer: Peer, frames: tuple[bytes, ...]) -> None:
    serving = peer.answer(*frames)
    answer = error(run(shim, peer.path, ADD))
    serving.join()
    assert answer["code"] == 11 and str(peer.path) in answer["msg"]


def test_a_server_that_is_killed(shim: Path, tmp_path: Path) -> None:
    """The connection breaks while the shim waits for its answer."""
    path = tmp_path / "cni.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()

    serving = threading.Thread(target=serve)
    serving.start()
    answer = error(run(shim, path, ADD, b"x" * 1_000_000))
    serving.join()
    listener.close()
    assert answer["code"] == 11 and "went away" in answer["msg"]


# --- other plugins ------------------------------------------------------------------------------


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def execute(
    shim: Path, peer: Peer, path: str, name: str, settings: dict[str, str], stdin: bytes
) -> tuple[int, bytes]:
    """What the shim reports about a plugin it was asked to run."""
    serving = peer.answer(wire.encode_execute(name, settings, stdin), QUIT)
    done = run(shim, peer.path, {**ADD, "CNI_PATH": path, "PATH": os.environ["PATH"]})
    serving.join()
    assert done.returncode == 0
    return peer.done[-1]


def test_another_plugin_is_run_where_the_shim_is(shim: Path, peer: Peer, tmp_path: Path) -> None:
    script(tmp_path, "echo", 'cat; echo "$CNI_COMMAND $EXTRA"; exit 3')
    stdin = os.urandom(100_000)
    path = f"/nowhere::{tmp_path}:/elsewhere"
    settings = {"CNI_COMMAND": "DEL", "EXTRA": "a=b"}
    assert execute(shim, peer, path, "echo", settings, stdin) == (3, stdin + b"DEL a=b\n")


def test_its_end_is_reported(shim: Path, peer: Peer, tmp_path: Path) -> None:
    script(tmp_path, "killed", f"kill -{signal.SIGTERM.value} $$")
    script(tmp_path, "deaf", "exec <&-; echo ok")
    (tmp_path / "odd").write_text("no program")
    (tmp_path / "odd").chmod(0o755)
    folder = str(tmp_path)
    assert execute(shim, peer, folder, "killed", {}, b"") == (128 + 15, b"")
    assert execute(shim, peer, folder, "deaf", {}, b"x" * 1_000_000) == (0, b"ok\n")
    assert execute(shim, peer, folder, "odd", {}, b"")[0] == 127
    for name in ("missing", "", "../bin/sh"):
        assert execute(shim, peer, f"{folder}/x", name, {}, b"") == (-1, b"")


def test_several_plugins_in_one_call(shim: Path, peer: Peer, tmp_path: Path) -> None:
    script(tmp_path, "count", "wc -c")
    asked = [wire.encode_execute("count", {}, b"x" * number) for number in range(5)]
    serving = peer.answer(*asked, QUIT)
    run(shim, peer.path, {**ADD, "CNI_PATH": str(tmp_path), "PATH": os.environ["PATH"]})
    serving.join()
    assert [int(output) for _, output in peer.done] == [0, 1, 2, 3, 4]


def test_it_is_static_and_small(shim: Path) -> None:
    listed = subprocess.run(["ldd", str(shim)], capture_output=True, text=True, check=False)
    assert "not a dynamic executable" in listed.stderr + listed.stdout
    assert shim.stat().st_size < 2_000_000

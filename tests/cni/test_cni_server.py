"""The server as a process: who may talk to it, what it does with nonsense, how it starts and stops."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.netns_lab import eventually
from tests.support.cni import Machine, calico, entered
from tortie.cni import wire
from tortie.cni.server import Server, Settings, main
from tortie.cni.wire import Request
from tortie.core.paths import Paths
from tortie.datastore.config import DatastoreConfig

pytestmark = pytest.mark.kernel


def connect(machine: Machine) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(180)
    connection.connect(str(machine.socket))
    return connection


def ask(machine: Machine, request: Request, *descriptors: int) -> tuple[int, bytes]:
    """(exit status, standard output) that the server orders for a request."""
    with connect(machine) as connection:
        data = wire.encode_request(request)
        socket.send_fds(connection, [data[:1]], list(descriptors))
        connection.sendall(data[1:])
        output = b""
        while head := connection.recv(wire.HEADER.size, socket.MSG_WAITALL):
            kind, length = wire.header(head)
            payload = connection.recv(length, socket.MSG_WAITALL) if length else b""
            if kind == wire.QUIT:
                return payload[0], output
            if kind == wire.OUTPUT:
                output += payload
    raise AssertionError("the server hung up")


def is_error_object(output: bytes) -> bool:
    found = json.loads(output)
    return (
        isinstance(found["code"], int) and found["code"] > 0 and bool(found["msg"]) and "cniVersion" in found
    )


# --- nonsense -----------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0"), max_size=40)
COMMANDS = st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "add"]) | TEXT
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "name", "cniVersion", "ipam", "mtu", "args", "policy", "kubernetes", "readiness_gates", "num_queues",
        "prevResult", "cni.dev/valid-attachments", "dataplane_options", "etcd_endpoints", "nodename",
        "log_file_path", "policy_setup_timeout_seconds", "container_settings", "device_type",
    ]
)  # fmt: skip
CONFIGURATIONS = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(FIELDS, VALUES, max_size=5).map(
        lambda extra: json.dumps(
            {"name": "n", "cniVersion": "1.1.0", "ipam": {"type": "calico-ipam"}} | extra
        ).encode()
    ),
)
VARIABLES = {
    "CNI_COMMAND": COMMANDS,
    "CNI_CONTAINERID": st.sampled_from(["c1", "", "-x"]) | TEXT,
    "CNI_NETNS": st.sampled_from(["", "/x"]) | TEXT,
    "CNI_IFNAME": st.sampled_from(["eth0", "..", ""]) | TEXT,
    "CNI_ARGS": st.sampled_from(["", "IgnoreUnknown=1;K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", "a"]) | TEXT,
    "CNI_PATH": st.sampled_from(["/x", ""]) | TEXT,
}
_NOTHING_LEFT_OUT = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    environment=st.fixed_dictionaries({}, optional=VARIABLES),
    complete=st.booleans(),
    stdin=CONFIGURATIONS,
    name=st.sampled_from(["calico", "calico-ipam", "other"]),
    arguments=st.lists(st.sampled_from(["-v", "-t", "-upgrade", "--", "x"]), max_size=2),
)
def test_whatever_is_asked_there_is_an_answer(
    machine: Machine,
    environment: dict[str, str],
    complete: bool,
    stdin: bytes,
    name: str,
    arguments: list[str],
) -> None:
    """Exit status 0, or 1 with a CNI error object; and the server lives."""
    if complete:
        environment = _NOTHING_LEFT_OUT | environment
    environment = {key: value.encode("utf-8", "replace").decode() for key, value in environment.items()}
    if b"log_file_path" in stdin:
        return  # it would be written
    status, output = ask(machine, Request(name, tuple(arguments), environment, stdin))
    assert status == 0 or (status == 1 and is_error_object(output)), output
    os.kill(machine.server, 0)


ONE = bytes([0, 0, 0, 1])  # the length before a text of one byte
WHOLE = wire.encode_request(Request("calico", (), {}, b""))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"R\xff\xff\xff\xff",
        wire.frame(b"R", b""),
        wire.frame(b"R", ONE + b"2"),
        wire.frame(b"D", b""),
        WHOLE[:-1],
        wire.frame(b"R", WHOLE[5:] + b"more"),
        WHOLE.replace(ONE + b"0", ONE + b"-"),
        os.urandom(1000),
    ],
)
def test_bytes_that_are_no_request(machine: Machine, data: bytes) -> None:
    with connect(machine) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    machine.chain().add(machine.pod())


def test_descriptors_that_nobody_asked_for_are_closed(machine: Machine) -> None:
    def open_files() -> int:
        return len(os.listdir(f"/proc/{machine.server}/fd"))

    machine.chain().add(machine.pod())
    before = open_files()
    reading, writing = os.pipe()
    for _ in range(3):
        request = Request("calico", (), {"CNI_COMMAND": "ADD"}, b"{}")
        status, _ = ask(machine, request, reading, writing, reading)
        assert status == 1
    eventually(lambda: open_files() < before + 3)  # one of each call would be three
    os.close(reading)
    os.close(writing)


def test_a_namespace_that_is_a_file(machine: Machine) -> None:
    """What was passed on is looked at, not believed."""
    conf = json.dumps(calico(name="n", policy={})).encode()
    environment = _NOTHING_LEFT_OUT | {"CNI_COMMAND": "ADD"}
    with open("/proc/self/cmdline", "rb") as file:
        status, output = ask(machine, Request("calico", (), environment, conf), file.fileno())
    assert status == 1 and json.loads(output)["details"] == "not a network namespace"


def test_file_descriptors_do_not_pile_up(machine: Machine) -> None:
    chain = machine.chain()

    def open_files() -> int:
        return len(os.listdir(f"/proc/{machine.server}/fd"))

    chain.add(machine.pod("first"))
    before = open_files()
    for number in range(5):
        pod = machine.pod(f"pod-{number}")
        chain.add(pod)
        chain.delete(pod)
    assert eventually(lambda: open_files() < before + 5)  # one of each pod; the server may open its own


# --- who may ask --------------------------------------------------------------------------------


def test_the_socket_is_roots_alone(machine: Machine) -> None:
    mode = machine.socket.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def test_another_user_is_refused_even_where_the_socket_lets_him(machine: Machine, tmp_path: Path) -> None:
    machine.socket.chmod(0o666)
    for folder in (machine.folder, *machine.folder.parents[:2], machine.socket.parent):
        folder.chmod(0o755)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.settimeout(120); print(len(s.recv(1)))"
    )
    command = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run([*command, str(machine.socket)], capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done.stderr
    assert "refused a connection of user 65534" in machine.log.read_text()


# --- starting and stopping ----------------------------------------------------------------------


def start(machine: Machine, **environment: str) -> "subprocess.Popen[bytes]":
    """The server as calico-node starts it."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tortie.cni.server"]
    with entered(machine.host):
        return subprocess.Popen(command, stderr=subprocess.PIPE, env=machine.environment | environment)


def test_its_own_process_from_start_to_end(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed()
    process = start(machine)
    eventually(machine.socket.exists)
    machine.chain().add(machine.pod())
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0 and not machine.socket.exists()
    assert b"listening on" in said and b"Traceback" not in said


def test_a_second_server_says_so_and_leaves_the_first_alone(machine: Machine) -> None:
    process = start(machine)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 1 and b"another CNI server is listening here" in said
    machine.chain().add(machine.pod())


def test_a_dead_servers_socket_is_replaced(machine: Machine) -> None:
    machine.kill_server(keep_socket=True)
    assert machine.socket.exists() and not _answers(machine)
    process = start(machine)
    eventually(lambda: _answers(machine))
    process.terminate()
    process.communicate()


def _answers(machine: Machine) -> bool:
    try:
        return ask(machine, Request("calico", ("-v",), {}, b""))[0] == 0
    except (ConnectionRefusedError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ETCD_ENDPOINTS": ""}, b"datastoreType"),
        ({"DATASTORE_TYPE": "kubernetes"}, b"datastoreType"),
        ({"TORTIE_CNI_SOCKET": "/proc/none/x"}, b"TORTIE_CNI_SOCKET"),
    ],
)
def test_what_keeps_it_from_starting_is_said(
    bare_machine: Machine, environment: dict[str, str], said: bytes
) -> None:
    assert said in refusal(bare_machine, **environment)


def test_a_file_in_its_sockets_place_is_left_alone(bare_machine: Machine, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("dear")
    assert b"exists and is no socket" in refusal(bare_machine, TORTIE_CNI_SOCKET=str(kept))
    assert kept.read_text() == "dear" and list(tmp_path.glob("kept*")) == [kept]


def refusal(machine: Machine, **environment: str) -> bytes:
    """What a server says that does not start."""
    process = start(machine, **environment)
    try:
        _, text = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 1 and b"Traceback" not in text
    return text


def test_calls_before_the_datastore_is_there(bare_machine: Machine) -> None:
    """Not an error of the server: it answers that one is to try again."""
    machine = bare_machine
    machine.etcd.kill()
    machine.start_server()
    conf = json.dumps(calico(name="n", policy={})).encode()
    environment = _NOTHING_LEFT_OUT | {"CNI_COMMAND": "ADD"}
    status, output = ask(machine, Request("calico", (), environment, conf))
    assert status == 1 and json.loads(output)["code"] == 11
    machine.start_etcd()
    machine.seed()
    machine.chain().add(machine.pod())


# --- health -------------------------------------------------------------------------------------


def test_health_is_reported_at_each_change(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed()
    paths = Paths(cni_socket=str(machine.socket), run=str(machine.folder), lib=str(machine.lib))
    config = DatastoreConfig(etcdEndpoints=(machine.etcd.endpoint,))
    told: list[tuple[bool, bool, str]] = []

    async def serve() -> None:
        server = Server(Settings(paths, config, "node-1"), report=lambda *report: told.append(report))
        running = asyncio.create_task(server.run())
        async with asyncio.timeout(120):
            while not told or not told[-1][1]:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])

    with entered(machine.host):
        asyncio.run(serve())
    assert told[0] == (True, False, "waiting for the datastore")
    assert told[-1] == (True, True, "")


def test_main_reads_the_environment() -> None:
    assert main({"ETCD_ENDPOINTS": "http://x", "TORTIE_CNI_SOCKET": "/proc/none/x"}) == 1

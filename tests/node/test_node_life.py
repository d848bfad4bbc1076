"""A whole node on one machine: ready, probed, followed by its Node resource, killed and stopped."""

import signal
import socket

import pytest

from tests.node.conftest import Machine
from tortie.lab.cluster import command, tail, wait_until
from tortie.linux import netns

pytestmark = pytest.mark.kernel

HEALTH = ("127.0.0.1", 9099)
SHUTDOWN_NOTE = "/var/lib/calico/shutdownTS"


@pytest.fixture
def running(machine: Machine) -> Machine:
    """A machine whose node is ready."""
    machine.node.start_agent()
    machine.node.wait_ready()
    return machine


def ask(machine: Machine, path: str) -> str:
    """The HTTP answer of the health port."""
    with connection(machine) as link:
        link.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while part := link.recv(4096):
            answer += part
    return answer.decode()


def connection(machine: Machine) -> socket.socket:
    return in_namespace(machine, lambda: socket.create_connection(HEALTH, 60.0))


def in_namespace(machine: Machine, function: object) -> socket.socket:
    fd = netns.open(machine.node.box.netns)
    made: socket.socket = netns.call_in(fd, function)  # type: ignore[arg-type]
    return made


def probe(machine: Machine, *words: str) -> tuple[int, str]:
    done = machine.node.box.run(command("calico-node"), *words, check=False)
    return done.returncode, done.stdout


def await_well(machine: Machine, *words: str) -> None:
    """A probe's question has five seconds, which a busy machine may need for itself."""
    wait_until(
        lambda: probe(machine, *words) == (0, ""), " ".join(words), 180, lambda: str(probe(machine, *words))
    )


# --- health ---------------------------------------------------------------------------------------


def test_every_part_is_live_and_ready_and_one_that_died_is_told_from_the_others(running: Machine) -> None:
    answer = ""

    def ready() -> bool:
        nonlocal answer
        answer = ask(running, "/readiness")
        return "200 OK" in answer

    wait_until(ready, "readiness", 180, lambda: answer)
    for part in ("bgp", "cni", "confd", "felix", "tunnels"):
        row = next(line for line in answer.splitlines() if line.startswith(f"| {part} "))
        assert "reporting live" in row and "reporting ready" in row, answer
    assert "200 OK" in ask(running, "/liveness")
    assert "404" in ask(running, "/healthz")

    # A part that died is told from the others.
    box = running.node.box
    (felix,) = box.pids("calico-node", "-felix")
    box.kill("calico-node", "-felix")
    running.node.wait_until(lambda: felix not in box.pids("calico-node", "-felix"), "felix to die")
    await_well(running, "-bird-live", "-bird-ready")
    running.node.wait_until(lambda: probe(running, "-felix-ready")[0] == 0, "felix to return", 180)


def test_probe_commands_and_a_stop_that_ends_every_process(running: Machine) -> None:
    every = ("-felix-live", "-felix-ready", "-bird-live", "-bird-ready", "-bird6-live", "-bird6-ready")
    await_well(running, *every)
    await_well(running, "component", "node", "health", "--felix-ready", "--threshold-time=0s")
    code, said = probe(running, "-felix-lively")
    assert code == 1 and "unknown check 'felix-lively'" in said
    code, said = probe(running, "-threshold-time", "soon", "-felix-live")
    assert code == 1 and "-threshold-time" in said
    assert len(running.node.node_pids()) >= 6
    running.node.stop_agent()
    assert running.node.node_pids() == []
    for check in every:
        code, said = probe(running, check)
        assert code == 1 and said.startswith(f"calico/node is not {check.split('-')[2]}: "), said


def test_somebody_elses_port_does_no_harm(machine: Machine) -> None:
    other = in_namespace(machine, lambda: socket.create_server(HEALTH))
    with other:
        machine.node.start_agent()
        machine.node.wait_ready()  # probes do not need the port
        assert "cannot serve health on localhost port 9099" in machine.node.log.read_text()
        assert "address already in use" in machine.node.log.read_text()
        assert "Traceback" not in machine.node.log.read_text()
    machine.node.wait_until(lambda: "health is served" in machine.node.log.read_text(), "the port", 180)
    assert "200 OK" in ask(machine, "/liveness")


def test_the_port_can_be_switched_off_and_moved(machine: Machine) -> None:
    machine.node.start_agent(FELIX_HEALTHENABLED="false")
    machine.node.wait_ready()
    with pytest.raises(ConnectionRefusedError):
        connection(machine)
    await_well(machine, "-felix-live", "-bird-live")
    machine.node.stop_agent()
    done = machine.calico_node(FELIX_HEALTHPORT="99999")
    assert done.returncode == 1 and "FELIX_HEALTHPORT = '99999'" in done.stderr


# --- start and stop -------------------------------------------------------------------------------


def test_the_note_of_a_shutdown_goes_when_the_node_is_ready_again(running: Machine) -> None:
    box = running.node.box
    running.node.stop_agent()  # which may just be about to take a note away, as it has become ready
    assert box.run(command("calico-node"), "-shutdown").returncode == 0
    assert box.path(SHUTDOWN_NOTE).read_text().endswith("Z")
    running.node.start_agent()
    running.node.wait_until(lambda: not box.path(SHUTDOWN_NOTE).exists(), "the note to go", 180)
    running.node.wait_ready()


def test_ctrl_c_ends_what_a_killed_part_left_behind_too(running: Machine) -> None:
    running.node.box.kill("tortie.bgp.exabgp")  # its helper is nobody's child now
    running.node.stop_agent(signal.SIGINT)
    assert running.node.node_pids() == []


def test_a_killed_node_leaves_no_process(running: Machine) -> None:
    running.node.kill_agent()
    assert running.node.node_pids() == []


def test_a_stop_while_it_waits_for_the_datastore(machine: Machine) -> None:
    machine.node.start_agent(ETCD_ENDPOINTS="http://172.18.0.1:9")
    machine.node.wait_until(lambda: "datastore - retry" in machine.node.log.read_text(), "the wait", 180)
    machine.node.stop_agent()
    assert machine.node.node_pids() == []


def test_only_root_may_run_a_node(machine: Machine) -> None:
    argv = ["unshare", "--user", command("calico-node")]
    done = machine.node.box.run(*argv, check=False)
    assert done.returncode == 1 and "calico-node needs root" in done.stderr
    assert machine.entries() == {}


def test_a_start_up_that_fails_fails_the_node(machine: Machine) -> None:
    done = machine.calico_node(AS="x", WAIT_FOR_DATASTORE="true")
    assert done.returncode == 1 and "AS = 'x'" in done.stderr
    assert machine.node.node_pids() == []


# --- the host's addresses -------------------------------------------------------------------------


def test_the_node_resource_follows_the_hosts_address(running: Machine) -> None:
    """And takes no notice of the interfaces of pods, which come and go all day."""
    box = running.node.box
    box.run("ip", "link", "add", "cali0123456789a", "type", "veth", "peer", "name", "cali0123456789b")
    box.run("ip", "addr", "add", "10.9.9.9/32", "dev", "cali0123456789a")
    running.readdress("172.18.0.77/24")
    wait_until(
        lambda: running.stored()["bgp"]["ipv4Address"] == "172.18.0.77/24",
        "the new address",
        180,
        lambda: tail(running.node.log),
    )
    assert running.stored()["interfaces"] == [{"name": "eth0", "addresses": ["172.18.0.77"]}]
    text = running.node.log.read_text()
    (change,) = [line for line in text.splitlines() if "the host's addresses changed" in line]
    assert "172.18.0.77" in change and "cali" not in change
    assert "multiple nodes with the same name" in text

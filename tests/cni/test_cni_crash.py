"""The server is killed, the runtime gives up, the datastore goes away: nothing leaks, nothing is double."""

import json
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from tests.netns_lab import eventually
from tests.support.cni import Machine, calico, pool
from tortie.core.errors import CniError
from tortie.lab.runtime import Attachment

pytestmark = pytest.mark.kernel

DUAL = calico(ipam={"type": "calico-ipam", "assign_ipv6": "true"})
_MANY_STEPS = 60  # more than any single call has


@pytest.fixture
def machine(bare_machine: Machine) -> Machine:
    bare_machine.seed(pool("v4", "10.65.0.0/24"), pool("v6", "fd00:65::/112"))
    return bare_machine


def dies(machine: Machine, step: int, call: Callable[[], object]) -> bool:
    """Whether the server died at this step of `call`; if not, the call was done."""
    machine.start_server(die_at=step)
    try:
        call()
    except CniError as err:
        assert err.code == 11 and "went away before it answered" in err.msg
        assert machine.wait_server() == -signal.SIGKILL
        return True
    machine.stop_server()
    return False


def add_only(machine: Machine, pod: Attachment) -> None:
    """ADD as chain.add(), without the DEL that follows a failure there."""
    chain = machine.chain(DUAL)
    chain.delete = lambda attachment: None  # type: ignore[method-assign]
    chain.add(pod)


@pytest.mark.parametrize("repair", ["DEL", "ADD", "GC"])
def test_add_killed_at_every_step_is_repaired(machine: Machine, repair: str) -> None:
    """By a later DEL; by a repeated ADD and its DEL; by GC."""
    for step in range(1, _MANY_STEPS):
        pod = machine.pod(f"pod-{step}")
        died = dies(machine, step, lambda pod=pod: add_only(machine, pod))  # type: ignore[misc]
        machine.start_server()
        chain = machine.chain(DUAL, version="1.1.0")
        if repair == "ADD":
            chain.add(pod)
            chain.check(pod)
        chain.gc([]) if repair == "GC" else chain.delete(pod)
        assert not machine.remains(), f"after a kill before step {step}"
        machine.stop_server()
        if not died:
            assert step > 10  # else the steps were not counted
            return
    pytest.fail("the server never survived")


def test_delete_killed_at_every_step_is_repaired(machine: Machine) -> None:
    for step in range(1, _MANY_STEPS):
        pod = machine.pod(f"pod-{step}")
        machine.start_server()
        chain = machine.chain(DUAL)
        chain.add(pod)
        machine.stop_server()
        died = dies(machine, step, lambda: chain.delete(pod))  # noqa: B023 - called at once
        machine.start_server()
        chain.delete(pod)
        assert not machine.remains(), f"after a kill before step {step}"
        machine.stop_server()
        if not died:
            assert step > 5
            return
    pytest.fail("the server never survived")


# --- the runtime gives up -----------------------------------------------------------------------


def start_add(machine: Machine, pod: Attachment, **conf: object) -> "subprocess.Popen[bytes]":
    """An ADD that the caller can kill."""
    stdin = machine.folder / "stdin.json"
    args: dict[str, object] = {"org.projectcalico": {}}
    stdin.write_text(json.dumps(calico(name="net", cniVersion="1.0.0", args=args, **conf)))
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_PATH": str(machine.bin),
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": pod.netns,
        "CNI_IFNAME": pod.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.args.items()),
        "TORTIE_CNI_SOCKET": str(machine.socket),
    }
    with stdin.open("rb") as source:
        return machine.host.call(
            subprocess.Popen,
            [str(machine.bin / "calico")],
            stdin=source,
            stdout=subprocess.PIPE,
            env=environment,
        )


def test_a_killed_plugin_is_undone(machine: Machine) -> None:
    """ADD waits for policy that never comes; the runtime loses patience and kills it."""
    machine.start_server()
    adding = start_add(machine, machine.pod(), policy_setup_timeout_seconds=60)
    eventually(machine.endpoints)
    adding.kill()
    adding.communicate()
    eventually(lambda: not machine.remains())


def test_a_server_that_is_stopped_undoes_what_is_under_way(machine: Machine) -> None:
    machine.start_server()
    adding = start_add(machine, machine.pod(), policy_setup_timeout_seconds=60)
    eventually(machine.endpoints)
    os.kill(machine.server, signal.SIGTERM)
    output, _ = adding.communicate(timeout=180)
    error = json.loads(output)
    assert (adding.returncode, error["code"]) == (1, 11) and "being stopped" in error["msg"]
    assert machine.wait_server() == 0
    assert not machine.remains()


def test_a_plugin_killed_while_it_waits_for_its_turn(machine: Machine) -> None:
    machine.start_server()
    pod = machine.pod()
    first = start_add(machine, pod, policy_setup_timeout_seconds=60)
    eventually(machine.endpoints)
    second = start_add(machine, pod)
    for one in (second, first):
        one.kill()
        one.communicate()
    eventually(lambda: not machine.remains())


# --- many at once -------------------------------------------------------------------------------


class Keeper:
    """Kills the server at random times, and restarts it, until stopped.

    Only if a call has come to its end since the last time: else on a busy machine none ever would.
    """

    def __init__(self, machine: Machine, rand: random.Random) -> None:
        self._machine, self._rand = machine, rand
        self._stop = threading.Event()
        self.kills = 0
        self.ended: list[Attachment] = []  # what calls have come to their end for since the last kill

    def run(self) -> None:
        while not self._stop.wait(self._rand.uniform(0.05, 0.6)):
            if not self.ended:
                continue
            self.ended.clear()
            self._machine.kill_server()
            self.kills += 1
            self._machine.start_server()

    def stop_after(self, lives: "list[Future[None]]") -> None:
        wait(lives)
        self._stop.set()


def persist(call: Callable[[Attachment], object], pod: Attachment) -> None:
    """As kubelet does: again and again until it succeeds."""

    def done() -> bool:
        try:
            call(pod)
        except CniError as err:
            assert err.code == 11, err
            return False
        return True

    eventually(done, 300)


def test_200_pods_8_at_a_time_while_the_server_is_killed(machine: Machine) -> None:
    rand = random.Random(4711)
    machine.start_server()
    chain = machine.chain(DUAL)
    doubles: list[str] = []

    def live(number: int) -> None:
        pod = machine.pod(f"pod-{number}")
        persist(chain.add, pod)
        keeper.ended.append(pod)
        doubles.extend(double_addresses(machine))
        persist(chain.delete, pod)
        keeper.ended.append(pod)

    keeper = Keeper(machine, rand)
    with ThreadPoolExecutor(8) as pods:
        lives = [pods.submit(live, number) for number in range(200)]
        waiting = threading.Thread(target=keeper.stop_after, args=(lives,))
        waiting.start()
        keeper.run()
        waiting.join()
        for one in lives:
            one.result()
    assert keeper.kills > 5
    assert not machine.remains() and not doubles


def double_addresses(machine: Machine) -> list[str]:
    """Addresses that belong to more than one endpoint now."""
    endpoints = machine.endpoints().values()
    used = Counter(network for one in endpoints for network in one["spec"]["ipNetworks"])
    return [network for network, count in used.items() if count > 1]


# --- the datastore ------------------------------------------------------------------------------


def test_etcd_is_killed_under_the_load(machine: Machine) -> None:
    machine.start_server()
    chain = machine.chain()
    pods = [machine.pod(f"pod-{number}") for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        adding = [threads.submit(persist, chain.add, pod) for pod in pods]
        eventually(lambda: len(machine.endpoints()) > 3)
        machine.etcd.kill()
        machine.start_etcd()
        for one in adding:
            one.result()
    assert len(set(machine.held())) == len(machine.held()) == 24
    for pod in pods:
        chain.check(pod)
        chain.delete(pod)
    assert not machine.remains()

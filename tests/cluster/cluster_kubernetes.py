"""A Kubernetes of the lab as its users see it: objects to apply, an outside router that is told routes."""

import json
from collections.abc import Mapping
from typing import Any

from tortie.lab.box import Box
from tortie.lab.cluster import UNDERLAY, Lab, tail, wait_until
from tortie.lab.probe import Answer, Probe, run

ROUTER = 210  # address on the underlay
NATIVE = "/apis/networking.k8s.io/v1"
OURS = "/apis/crd.projectcalico.org/v1"


def ask(lab: Lab, method: str, path: str, body: Any = None) -> Any:
    assert lab.kubernetes is not None
    return lab.kubernetes.ask(method, path, body)


def allow(name: str, to: str, *clients: str, port: int = 80) -> dict[str, Any]:
    """A NetworkPolicy: pods with `app: to` take this port from pods with one of the labels, else nothing."""
    peers = [{"podSelector": {"matchLabels": {"app": client}}} for client in clients]
    rules = [{"from": peers, "ports": [{"protocol": "TCP", "port": port}]}] if peers else []
    spec = {"podSelector": {"matchLabels": {"app": to}}, "policyTypes": ["Ingress"], "ingress": rules}
    return {"metadata": {"name": name}, "spec": spec}


def policies(lab: Lab, *documents: Mapping[str, Any]) -> None:
    for document in documents:
        ask(lab, "POST", f"{NATIVE}/namespaces/default/networkpolicies", document)


def clear(lab: Lab, *collections: str) -> None:
    """Delete all objects of these collections, one by one: who may not list may not delete them at once."""
    for path in collections:
        for one in ask(lab, "GET", path)["items"]:
            ask(lab, "DELETE", f"{path}/{one['metadata']['name']}")


def await_refused(lab: Lab, *pairs: tuple[str, str]) -> None:
    """Wait until exactly these (client, server) are refused."""

    def refused() -> set[tuple[str, str]]:
        return {pair for pair, answer in lab.matrix(timeout=1.0).items() if not answer.ok}

    wait_until(lambda: refused() == set(pairs), f"{pairs} to be refused", 120, lambda: str(refused()))


def reach(lab: Lab, client: str, address: str, port: int = 80) -> Answer:
    return run([Probe(lab.pods[client].netns_fd, address, port)], 1.0)[0]


class Router:
    """BIRD 2 outside the cluster, in its AS, with a session to each node; its kernel has what it hears.

    To a router in another AS each node would pass on what it hears from the others, as in Calico.
    """

    def __init__(self, lab: Lab) -> None:
        self.box: Box = lab.hosts.get("router") or lab.add_host("router", ROUTER)
        self._lab = lab
        self._log = lab.folder / "router.log"

    def start(self) -> None:
        sessions = "".join(
            f"protocol bgp n{number} {{ local {UNDERLAY}.{ROUTER} as 64512; neighbor {node.ip} as 64512;"
            " direct; connect delay time 1; connect retry time 1; error wait time 1, 2;"
            " ipv4 { import all; export none; }; }\n"
            for number, node in enumerate(self._lab.nodes.values())
        )
        self.box.path("/etc/bird.conf").write_text(
            f"router id {UNDERLAY}.{ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n"
            f"protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; merge paths on; }}\n{sessions}"
        )
        self.box.run("mkdir", "-p", "/run/bird")
        self.box.start(["bird", "-f", "-c", "/etc/bird.conf"], self._log)
        wait_until(lambda: self.box.pids("bird", "-f") != [], "BIRD to start", 240, lambda: tail(self._log))

    def stop(self) -> None:
        self.box.kill("bird", "-f")

    def next_hops(self, prefix: str) -> set[str]:
        """Of the kernel's route to a prefix; empty if there is none."""
        routes = json.loads(self.box.output("ip", "-j", "route", "show", prefix) or "[]")
        hops = [hop for route in routes for hop in route.get("nexthops", [route])]
        return {hop["gateway"] for hop in hops if "gateway" in hop}

    def await_route(self, prefix: str, *hops: str) -> None:
        """Wait until exactly these lead there."""
        what = f"{prefix} to lead to {hops}"
        wait_until(
            lambda: self.next_hops(prefix) == set(hops), what, 240, lambda: str(self.next_hops(prefix))
        )

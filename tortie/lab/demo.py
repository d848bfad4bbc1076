"""The demo: a cluster comes up before the reader's eyes, and what a Calico user would look at first."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from tortie.lab.box import LabError
from tortie.lab.cluster import Lab, render_matrix, wait_until
from tortie.lab.probe import Answer

_ACCESS = "networking/allow-db-access"  # the label that opens the database
_PODS = [  # (pod, number of its node); two on the first node, so that both kinds of path are shown
    ("frontend-0", 1), ("backend-0", 2), ("db-0", 3), ("backend-1", 1),
]  # fmt: skip

# The policy of one of Kubernetes, in Calico's words.
_POLICY = f"""\
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: allow-db-access
  namespace: default
spec:
  order: 1000
  selector: projectcalico.org/orchestrator == 'k8s' && app == 'db'
  types:
  - Ingress
  ingress:
  - action: Allow
    source:
      selector: projectcalico.org/orchestrator == 'k8s' && {_ACCESS} == 'true'
"""


_PATIENCE = 120.0  # seconds for anything to come about, on a busy machine

Answers = dict[tuple[str, str], Answer]  # (client, server) -> what it got


class Story:
    """Prints steps with the time they took, and commands with their output."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        print(f"  {time.monotonic() - self._started:5.1f}s  {text}", flush=True)

    def title(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m", flush=True)

    def shown(self, where: str, command: str, output: str) -> None:
        print(f"\n\033[2m{where}$\033[0m {command}", flush=True)
        for line in output.rstrip("\n").splitlines():
            print(f"  {line}".rstrip(), flush=True)


def run(folder: Path, nodes: int) -> Lab:
    """Bring a cluster up, show it, and return it running. Raises LabError if anything is unreachable."""
    story = Story()
    story.title(f"A cluster of {nodes} nodes")
    lab = Lab(folder, nodes)
    try:
        lab.up(story.step)
        add_pods(lab, story.step)
        story.step("waiting until every pod reaches every other")
        wait_until(
            lambda: all(a.ok for a in lab.matrix().values()), "the pods to reach each other", _PATIENCE
        )
        story.step("all reachable")
        # What the speakers say of their sessions they say after the routes are there.
        wait_until(lambda: _all_established(lab), "all nodes to say so", _PATIENCE)
        _show(story, lab)
        _show_policy(story, lab)
    except BaseException:
        lab.down()
        raise
    return lab


def add_pods(lab: Lab, tell: Callable[[str], None] = lambda _text: None) -> None:
    for name, number in _PODS:
        node = f"node-{min(number, len(lab.nodes))}"
        pod = lab.add_pod(name, node, labels=_labels(name))
        tell(f"pod {name} on {node}: {pod.address()}")


def _all_established(lab: Lab) -> bool:
    shown = [lab.calicoctl("node", "status", node=name).stdout for name in lab.nodes]
    return all(text.count("Established") == len(lab.nodes) - 1 for text in shown)


def _show(story: Story, lab: Lab) -> None:
    first = lab.nodes["node-1"]
    pod = lab.pods["frontend-0"]
    story.title("What the datastore says")
    _calicoctl(story, lab, "get", "nodes", "-o", "wide")
    _calicoctl(story, lab, "get", "ippool", "-o", "wide")
    _calicoctl(story, lab, "get", "workloadendpoints")
    _calicoctl(story, lab, "ipam", "show", "--show-blocks")
    story.title("The BGP mesh, as each node sees it")
    for node in lab.nodes.values():
        answer = lab.calicoctl("node", "status", node=node.name)
        story.shown(node.name, "calicoctl node status", answer.stdout + answer.stderr)
    story.title("One node's routes, one pod's routes, and who answers for the gateway")
    story.shown("node-1", "ip route", first.box.output("ip", "route"))
    story.shown("frontend-0", "ip route", pod.output("ip", "route"))
    asked = pod.output("arping", "-c", "1", "-w", "60", "-I", "eth0", "169.254.1.1")  # a second, if not told
    story.shown("frontend-0", "arping -c 1 169.254.1.1", asked)
    link = str(_interface_of(lab, "frontend-0"))
    proxy = f"/proc/sys/net/ipv4/conf/{link}/proxy_arp"
    story.shown("node-1", f"cat {proxy}", first.box.output("cat", proxy))
    story.title("Who reaches whom over TCP (client × server)")
    _matrix(lab, lab.matrix(refused=()), refused=set())


def _show_policy(story: Story, lab: Lab) -> None:
    """Close the database to all but those who may, and show what the kernel does it with."""
    story.title(f"A network policy: only pods labelled {_ACCESS}=true reach db")
    story.shown("lab", "cat allow-db-access.yaml", _POLICY)
    answer = lab.calicoctl("apply", "-f", "-", stdin=_POLICY)
    story.shown("lab", "calicoctl apply -f allow-db-access.yaml", answer.stdout + answer.stderr)
    if answer.returncode != 0:
        raise LabError("the policy was refused")
    _calicoctl(story, lab, "get", "networkpolicy", "-o", "wide")
    refused = {("frontend-0", "db-0")}
    answers: Answers = {}

    def enforced() -> bool:
        answers.update(lab.matrix(timeout=1.0))
        return {pair for pair, one in answers.items() if not one.ok} == refused

    wait_until(enforced, "the policy to be enforced", _PATIENCE)
    story.title("Who reaches whom now")
    _matrix(lab, answers, refused)
    story.title("The chains and the IP set that make the difference")
    node = lab.pods["db-0"].box
    rules = node.output("iptables-save", "-t", "filter")
    chain = f"cali-tw-{_interface_of(lab, 'db-0')}"
    story.shown(node.name, f"iptables-save -t filter | grep -e '-A {chain}'", _rules_of(chain, rules))
    for policy in _found(r"-j (cali-pi-\S+)", _rules_of(chain, rules)):
        story.shown(node.name, f"iptables-save -t filter | grep -e '-A {policy}'", _rules_of(policy, rules))
        for name in _found(r"--match-set (\S+)", _rules_of(policy, rules)):
            story.shown(node.name, f"ipset list {name}", node.output("ipset", "list", name))


def _labels(pod: str) -> dict[str, str]:
    app = pod.split("-")[0]
    return {"app": app, _ACCESS: "true"} if app == "backend" else {"app": app}


def _rules_of(chain: str, saved: str) -> str:
    return "\n".join(line for line in saved.splitlines() if line.startswith(f"-A {chain} "))


def _found(pattern: str, text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(pattern, text)))


def _matrix(lab: Lab, answers: Answers, refused: set[tuple[str, str]]) -> None:
    print()
    for line in render_matrix(list(lab.pods), answers).splitlines():
        print("  " + line)
    if wrong := [pair for pair, answer in answers.items() if answer.ok == (pair in refused)]:
        raise LabError(f"not as it should be: {wrong}")


def _interface_of(lab: Lab, pod: str) -> str:
    routes = lab.pods[pod].box.output("ip", "-o", "route", "get", lab.pods[pod].address())
    words = routes.split()
    return words[words.index("dev") + 1]


def _calicoctl(story: Story, lab: Lab, *args: str) -> None:
    answer = lab.calicoctl(*args)
    story.shown("lab", "calicoctl " + " ".join(args), answer.stdout + answer.stderr)
    if answer.returncode != 0:
        raise LabError(f"calicoctl {' '.join(args)} failed")


def things_to_try(lab: Lab) -> str:
    """What to do next, as text."""
    return f"""
Things to try, from another terminal ({", ".join([*lab.nodes, *lab.pods])}):

  sudo ./dev shell node-1                           a shell on a node; calicoctl works there
  sudo ./dev shell frontend-0 ping -c 3 172.18.0.1  a command inside a pod; its packets leave masqueraded
  sudo ./dev shell node-1 calicoctl get ippool default-ipv4-ippool -o yaml
  sudo ./dev shell node-1 calicoctl delete networkpolicy allow-db-access
  sudo ./dev shell node-1 ip monitor route          then kill something elsewhere and watch
  sudo ./dev shell node-2 pkill -9 -f -- -felix     it comes back; nothing is lost meanwhile
  sudo ./dev shell lab tail -f /run/lab/node-1.log  a node's log; lab is where etcd runs
  sudo ./dev demo --down                            remove everything (so does Ctrl-C here)
"""

"""Bursts of pods on a real Kubernetes: from kubelet's ADD to a ready pod, beside Debian's `bridge` plugin.

    sudo python bench/kube_burst.py [PODS BURSTS]      (default: 100 3)

Three nodes with kubelet and containerd, all on this machine. Each burst makes so many pods at once and
deletes them at once; the same bursts are then made on the same cluster with `bridge` and `host-local` as the
network of each node. An ADD begins when the runtime starts the plugin, which a wrapper of a few lines notes
down (for both alike); a pod is ready when the API server says so. With ours it is also told whether an
address was ever with two pods, and what `calicoctl ipam check` says after the last burst.
"""

import contextlib
import json
import shutil
import ssl
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated
from tortie.lab.apiserver import ADMIN_TOKEN, ApiServer
from tortie.lab.cluster import wait_until
from tortie.lab.kube import BUSYBOX, KubeLab
from tortie.lab.kubenode import KubeNode

_PODS = "/api/v1/namespaces/burst/pods"
_THEIRS = Path("/usr/lib/cni")
_LIMIT = 1200.0  # seconds for one burst, on a busy machine
_NOTES = "/run/adds"
# Notes when it is called, then is the plugin. Uptime has hundredths of a second and costs no process.
_WRAPPER = """\
#!/bin/sh
[ "$CNI_COMMAND" != ADD ] || {{ read -r up _ </proc/uptime; echo "$up $CNI_ARGS" >>{notes}; }}
exec {program}
"""


@dataclass
class Watched:
    """What the API server has told. Times are seconds of the machine's uptime."""

    ready: dict[str, float] = field(default_factory=dict)  # pod -> when
    holders: dict[str, set[str]] = field(default_factory=dict)  # address -> pods that have it now
    doubles: set[str] = field(default_factory=set)


class Watch:
    """Follows the namespace's pods in a thread of its own."""

    def __init__(self, api: ApiServer) -> None:
        self._api, self.seen = api, Watched()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        context = ssl.create_default_context(cafile=self._api.ca)
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        request = urllib.request.Request(f"{self._api.url}{_PODS}?watch=1", headers=headers)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, context=context) as lines:
            for line in lines:
                event = json.loads(line)
                self._take(event["type"], event["object"])

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        address = status.get("podIP", "")
        if kind == "DELETED":
            for holders in self.seen.holders.values():
                holders.discard(name)
        elif address:
            holders = self.seen.holders.setdefault(address, set())
            holders.add(name)
            if len(holders) > 1:
                self.seen.doubles.add(f"{address}: {', '.join(sorted(holders))}")
        conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
        if conditions.get("Ready") == "True":
            self.seen.ready.setdefault(name, time.clock_gettime(time.CLOCK_BOOTTIME))


def main() -> None:
    isolated.ensure()
    pods, bursts = (int(word) for word in (*sys.argv[1:3], "100", "3")[:2])
    print(f"{bursts} bursts of {pods} pods on three nodes\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = KubeLab(Path(folder))
        try:
            lab.up()
            _measure(lab, pods, bursts)
        finally:
            lab.down()


def _measure(lab: KubeLab, pods: int, bursts: int) -> None:
    lab.api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "burst"}})
    account = "/api/v1/namespaces/burst/serviceaccounts/default"
    wait_until(lambda: _has_token(lab, account), "the namespace's account", 60)
    print(f"{'':10}{'ADD to ready: p50':>20}{'p90':>8}{'worst':>8}{'all ready':>12}{'all gone':>11}")
    watch = Watch(lab.api)
    for node in lab.nodes.values():
        _note_adds(node, "calico")
    _show("ours", lab, watch, pods, bursts)
    wait_until(lambda: "found 0 problems" in _check(lab), "IPAM to be clean", 120, lambda: _check(lab))
    told = f"{len(watch.seen.doubles)} addresses that two pods had at a time; ipam check: found 0 problems"
    for number, node in enumerate(lab.nodes.values(), 1):
        _use_bridge(node, number)
    _show("bridge", lab, watch, pods, bursts)
    print(f"\nours: {told}")


def _has_token(lab: KubeLab, account: str) -> bool:
    try:
        return bool(lab.api.ask("GET", account).get("secrets"))
    except RuntimeError:
        return False


def _check(lab: KubeLab) -> str:
    answer = lab.calicoctl("ipam", "check")
    return answer.stdout + answer.stderr


# --- plugins --------------------------------------------------------------------------------------


def _note_adds(node: KubeNode, plugin: str) -> None:
    """Put the wrapper in the plugin's place."""
    there = node.box.path(f"/opt/cni/bin/{plugin}")
    behind = node.box.path(f"/opt/cni/real/{plugin}")
    behind.parent.mkdir(exist_ok=True)
    shutil.copy2(there, behind)
    there.unlink()
    there.write_text(_WRAPPER.format(notes=_NOTES, program=f"/opt/cni/real/{plugin}"))
    there.chmod(0o755)
    node.box.path(_NOTES).write_text("")


def _use_bridge(node: KubeNode, number: int) -> None:
    """The runtime takes the first of the network configurations."""
    for plugin in ("bridge", "host-local"):
        shutil.copy2(_THEIRS / plugin, node.box.path(f"/opt/cni/bin/{plugin}"))
    _note_adds(node, "bridge")
    ipam = {"type": "host-local", "ranges": [[{"subnet": f"10.250.{number}.0/24"}]]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    conflist = {"cniVersion": "0.4.0", "name": "bridge", "plugins": [bridge]}
    node.box.path("/etc/cni/net.d/05-bridge.conflist").write_text(json.dumps(conflist))


def _added(lab: KubeLab) -> dict[str, float]:
    """Pod -> when its (first) ADD began."""
    found: dict[str, float] = {}
    for node in lab.nodes.values():
        for line in node.box.path(_NOTES).read_text().splitlines():
            at, _, arguments = line.partition(" ")
            pod = dict(word.split("=", 1) for word in arguments.split(";"))["K8S_POD_NAME"]
            found.setdefault(pod, float(at))
    return found


# --- bursts ---------------------------------------------------------------------------------------


def _show(label: str, lab: KubeLab, watch: Watch, pods: int, bursts: int) -> None:
    made: list[str] = []
    ready, gone = [], []
    for burst in range(bursts):
        names = [f"{label}-{burst}-{number}" for number in range(pods)]
        made += names
        ready.append(_timed(lambda names=names: _make(lab, watch, names)))  # type: ignore[misc]
        gone.append(_timed(lambda: _clear(lab)))
    added = _added(lab)
    delays = sorted(watch.seen.ready[name] - added[name] for name in made)
    cuts = statistics.quantiles(delays, n=10, method="inclusive")
    columns = [cuts[4], cuts[8], delays[-1], statistics.median(ready), statistics.median(gone)]
    widths = (20, 8, 8, 12, 11)
    cells = (f"{value:{width - 2}.2f} s" for value, width in zip(columns, widths, strict=True))
    print(f"{label:10}{''.join(cells)}", flush=True)


def _timed(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _make(lab: KubeLab, watch: Watch, names: Sequence[str]) -> None:
    for name, node in zip(names, _around(lab), strict=False):
        container = {"name": "one", "image": BUSYBOX, "command": ["sleep", "2147483647"]}
        spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container],
                "automountServiceAccountToken": False}  # fmt: skip
        lab.api.ask("POST", _PODS, {"metadata": {"name": name}, "spec": spec})
    wanted = set(names)
    wait_until(lambda: wanted <= watch.seen.ready.keys(), f"{len(names)} pods", _LIMIT, lab.evidence)


def _around(lab: KubeLab) -> Iterator[str]:
    while True:
        yield from lab.nodes


def _clear(lab: KubeLab) -> None:
    lab.kubectl("delete", "pods", "-n", "burst", "--all", "--wait=false")
    wait_until(lambda: not lab.api.ask("GET", _PODS)["items"], "them to be gone", _LIMIT)


if __name__ == "__main__":
    main()

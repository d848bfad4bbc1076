"""Whatever is stored, exabgp.conf says what we mean and nothing else: ExaBGP's own parser is the judge."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.confd.confd_cases import MASTER, cluster, configuration, node, password, peer, pool
from tortie.bgp import exabgp
from tortie.bgp.config import decode
from tortie.confd import context, render
from tortie.confd.localpeers import LocalPeer
from tortie.core.errors import ConfigError

pytestmark = pytest.mark.unit

_PIECES = [
    "\n",
    "\r",
    '"',
    "'",
    "{",
    "}",
    ";",
    "[",
    "]",
    ",",
    "#",
    "\\",
    "%",
    "$(id)",
    "\0",
    "é",
    "{{ 1 }}",
    "{% if %}",
]
_EVIL = [
    '"; }\nprocess evil { run /bin/sh; encoder json; }\nneighbor 9.9.9.9 { local-as 1',
    "10.0.0.9;\n}\nprocess evil { run /bin/sh; }",
    "fe80::1%eth0;\nprocess evil { run /bin/sh; }",
    "x" * 10_000,
    "../../etc/passwd",
    "10.0.0.9\\",
]
_text = st.one_of(
    st.sampled_from(_EVIL),
    st.text(max_size=30),
    st.lists(st.sampled_from(_PIECES) | st.text(max_size=4), max_size=8).map("".join),
)


def _near(*legal: str) -> st.SearchStrategy[str]:
    """Legal values, legal values with something added, and anything."""
    added = st.builds(
        lambda value, before, after: before + value + after, st.sampled_from(legal), _text, _text
    )
    good = st.sampled_from(legal)
    # Mostly legal, or nothing would get far.
    return st.integers(0, 9).flatmap(lambda dice: good if dice < 8 else added if dice < 9 else _text)


_address = _near("10.0.0.9", "fd00::9", "10.0.0.9:179", "[fd00::9]:179")
_nodes = st.builds(
    lambda name, v4, v6, cluster_id, labels: node(
        name, v4, v6, labels=labels, routeReflectorClusterID=cluster_id
    ),
    _text,
    _near("10.192.0.3/16", "10.192.0.3"),
    _near("fd00::3/64"),
    st.sampled_from(["", "", "", "224.0.0.1"]) | _near(""),
    st.dictionaries(_text, _text, max_size=2),
)
_peers = st.builds(
    lambda name, optional: peer(name, **optional),
    _text,
    st.fixed_dictionaries(
        {
            "peerIP": _address,
            "asNumber": st.integers(1, 2**32 - 1),
            "password": st.none() | st.builds(password, _text, _text),
        },
        optional={
            "node": _near("kube-master"),
            "nodeSelector": _near("all()"),
            "peerSelector": _near("all()"),
            "nextHopMode": _near("Keep", "Self"),
            "sourceAddress": _near("None"),
            "maxRestartTime": _near("10s", "-5s", "9999h"),
            "keepaliveTime": _near("10s"),
            "reachableBy": _near("10.0.0.254"),
            "ttlSecurity": st.integers(-300, 300),
            "numAllowedLocalASNumbers": st.integers(-5, 2**31),
            "localASNumber": st.integers(0, 2**32 - 1),
            "filters": st.tuples(_text),
            "reversePeering": _near("Manual"),
            "localWorkloadSelector": _near("all()"),
        },
    ),
)
_configurations = st.builds(
    lambda optional: configuration(**optional),
    st.fixed_dictionaries(
        {},
        optional={
            "logSeverityScreen": _near("Debug"),
            "listenPort": st.integers(0, 65535),
            "nodeMeshMaxRestartTime": _near("10s"),
            "nodeMeshPassword": st.builds(password, _text, _text),
            "programClusterRoutes": _near("Enabled"),
            "bindMode": _near("NodeIP"),
            "localWorkloadPeeringIPV4": _near("10.255.0.1"),
            "localWorkloadPeeringIPV6": _near("fd00:255::1"),
        },
    ),
)
_pools = st.builds(
    lambda name, cidr, mode: pool(name, cidr, ipipMode=mode), _text, _near("192.168.0.0/16"), _near("Always")
)
hostile_clusters = st.builds(
    lambda nodes, peers, config, pools: cluster(
        MASTER, *nodes, *peers, *config, *pools, blocks={"10.1.0.0/26": ""}
    ),
    st.lists(_nodes, max_size=2),
    st.lists(_peers, max_size=3),
    st.lists(_configurations, max_size=1),
    st.lists(_pools, max_size=1),
)

_JUDGE = r"""
import os, sys
from tortie.bgp import exabgp
os.environ.update(exabgp.environment(os.environ, "CRITICAL"))
import json
from exabgp.configuration.configuration import Configuration
from exabgp.environment import getenv
from exabgp.logger import log
from exabgp.rib import RIB

log.init(getenv())
TEXT = ("peer-address", "local-address", "local-as", "peer-as", "hold-time", "passive", "description",
        "md5-password", "listen", "connect")
for line in sys.stdin:
    RIB._cache.clear()
    parsed = Configuration([line.rstrip("\n")])
    good = parsed.reload()
    print(json.dumps({
        "good": bool(good),
        "error": "" if good else str(parsed.error),
        "processes": {name: process["run"] for name, process in parsed.processes.items()},
        "neighbors": [[str(n[name]) for name in TEXT] for n in parsed.neighbors.values()],
    }), flush=True)
"""


class Judge:
    """ExaBGP's parser in a process of its own, asked about one file after the other."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _JUDGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=exabgp.environment(os.environ) | {"PYTHONPATH": root},
        )
        self._folder = tempfile.TemporaryDirectory()

    def ask(self, text: str) -> Any:
        path = Path(self._folder.name) / "exabgp.conf"
        path.write_text(text, encoding="ascii")
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        self._folder.cleanup()


@pytest.fixture(scope="module")
def judge() -> Any:
    made = Judge()
    yield made
    made.close()


class _Secrets(dict[tuple[str, str], bytes]):
    """Every secret exists, and is as bad as can be."""

    def get(self, key: Any, default: Any = None) -> Any:
        return f'";}}\nprocess evil {{ run {key[0]}; }}'.encode("utf-8", "surrogatepass")[:80]


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)
@given(
    hostile_clusters,
    st.sampled_from(["", "hash", "10.0.0.1"]),
    st.lists(_near("10.65.0.2/32", "fd00:65::2/128"), max_size=2),
)
def test_hostile_data_never_reaches_a_file(
    judge: Judge, snapshot: Any, router_id: str, workload: list[str]
) -> None:
    """And it never stops the rest from being rendered."""
    workloads = [LocalPeer(name, tuple(workload)) for name in snapshot.peers]
    made = context.build(snapshot, "kube-master", router_id, _Secrets(), local_peers=workloads)
    conf, digest = render.exabgp_conf(made)
    found = judge.ask(conf)
    event(f"{len(made.neighbors)} neighbors, {len(made.problems)} problems")
    assert found["good"], found["error"]
    assert found["processes"] == {"agent": list(made.agent)}
    expected = [
        [
            peer.address,
            peer.local_address or "None",
            str(peer.local_as),
            str(peer.peer_as),
            str(neighbor.session.hold_time),
            str(peer.passive),
            f"{neighbor.session.name} {digest}",
            render.base64(neighbor.password) if neighbor.password else "None",
            str(neighbor.listen),
            str(peer.port),
        ]
        for neighbor in made.neighbors
        for peer in [neighbor.session.peer]
    ]
    assert sorted(found["neighbors"]) == sorted(expected)
    assert decode(render.bgp_json(made, digest), "bgp.json").sessions == digest


def test_the_judge_sees_what_must_not_be_there(judge: Judge) -> None:
    """The control: the same parser finds what an unfiltered value would have brought in."""
    made = context.build(cluster(MASTER, node("a", "10.192.0.3/16")), "kube-master")
    conf, _ = render.exabgp_conf(made)
    evil = '"; }\nprocess evil { run /bin/sh; encoder json; }\nneighbor 9.9.9.9 { description "'
    bad = judge.ask(conf.replace("Mesh_10_192_0_3", evil))
    assert "evil" in bad["processes"] or not bad["good"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "address",
            ["", "x", "10.0.0.1/32", "10.0.0.1/24", "fe80::1%x;\n}", "10.0.0.1 ", 7, None, "1.2.3.4\n"],
        ),
        ("number", ["7", -1, 2**32, True, 1.5, None]),
        ("boolean", ["true", 1, None]),
        ("word", ["", "a b", "a;b", "a\nb", 'a"b', "a'b", "a{b", "ä", "a#b", "a[b", "a\\b", None, b"a"]),
        ("command", ["ls", ("ls", "-l;"), ("a b",), ["ls"]]),
        ("base64", ["text", None]),
    ],
)
def test_filters_refuse_rather_than_escape(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError):
            getattr(render, name)(value)


def test_filters_let_pass_what_is_right() -> None:
    assert render.address("FD00:0::1") == "fd00::1"
    assert render.number(4294967295) == "4294967295"
    assert (render.boolean(True), render.boolean(False)) == ("true", "false")
    assert (
        render.command(("/usr/bin/python3", "-m", "tortie.bgp.agent"))
        == "/usr/bin/python3 -m tortie.bgp.agent"
    )
    assert render.base64(b'\x00";\n') == "ACI7Cg=="

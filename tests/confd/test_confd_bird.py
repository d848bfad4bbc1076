"""bird.cfg and bird6.cfg: BIRD accepts whatever is rendered, and finds in it what was meant, nothing else."""

import asyncio
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.confd.confd_cases import (
    MASTER,
    NO_MESH,
    NODES,
    POOL,
    bgp_filter,
    cluster,
    configuration,
    node,
    password,
    peer,
)
from tests.confd.test_confd_hostile import hostile_clusters
from tortie.bgp import bird
from tortie.bgp.config import load
from tortie.bgp.filters import Filter, Operation, Rule
from tortie.bgp.prefix import Version
from tortie.confd import birdfilter, context, files, render
from tortie.confd.bird import Bird
from tortie.confd.localpeers import LocalPeer
from tortie.confd.sessions import Session, session_name
from tortie.core.errors import ConfigError, PeerError
from tortie.datastore.types.bgp import FilterRule

pytestmark = pytest.mark.unit

_FAMILIES: tuple[Version, ...] = (4, 6)
# BIRD's lexer (conf/cf-lex.l): comments, strings, quoted symbols, words, everything else
_TOKEN = re.compile(r'#[^\n]*|/\*.*?\*/|("[^"\n]*")|(\'[^\'\n]*\')|([A-Za-z0-9_.:/-]+)|(\S)', re.S)


def _protocols(text: str) -> list[str]:
    """Names, or kinds where there is no name, of the protocols that stand outside of all braces."""
    tokens = [match[0] for match in _TOKEN.finditer(text) if any(match.groups())]
    found, depth = [], 0
    for at, token in enumerate(tokens):
        depth += (token == "{") - (token == "}")
        if token == "protocol" and depth == 0 and tokens[at - 1] in (";", "}"):
            kind, name = tokens[at + 1 : at + 3]
            found.append(name if kind == "bgp" else kind)
    assert depth == 0
    return found


def _named(session: Session) -> str:
    """Between nodes it is the mesh's name, whoever asks for the session."""
    return session_name("mesh", session.peer.address) if session.between_nodes else session.name


def _accepted(content: bytes) -> bool:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run(bird.check_argv(file.name), capture_output=True, check=False).returncode == 0


class _Secrets(dict[tuple[str, str], bytes]):
    """Every secret exists, and is as bad as can be."""

    def get(self, key: Any, default: Any = None) -> Any:
        name = key[0].encode("utf-8", "surrogatepass")
        return b"'; } # /* protocol bgp evil { \\" + name[:40] + b"\xff"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    hostile_clusters, st.lists(st.text(max_size=60), max_size=2), st.sampled_from(["", "hash", "10.0.0.1"])
)
def test_hostile_data_never_reaches_a_file(snapshot: Any, names: list[str], router_id: str) -> None:
    for name in names:
        one = bgp_filter(
            name, importV4=(FilterRule(action="Reject"),), exportV6=(FilterRule(action="Accept"),)
        )
        snapshot.filters[name] = one
    snapshot.peers["filtered"] = peer("filtered", peerIP="10.9.9.9", asNumber=1, filters=tuple(names))
    made = context.build(snapshot, "kube-master", router_id, _Secrets(), speaker="bird")
    for family in _FAMILIES:
        problems: list[str] = []
        content = render.bird_cfg(made, family, problems)
        assert _accepted(content), content
        mine = [one for one in made.neighbors if (":" in one.session.peer.address) == (family == 6)]
        left_out = {problem.partition(":")[0] for problem in problems}
        expected = [_named(one.session) for one in mine if one.session.name not in left_out]
        disabled = not made.config.local.address(family)
        assert disabled or len(left_out) == sum(bool({10, 34, 0} & set(one.password)) for one in mine)
        kinds = ["device"] if disabled else ["device", "static", "direct", "kernel", "pipe", *expected]
        assert _protocols(content.decode("latin-1")) == kinds
        event(f"{len(expected)} of {len(mine)} sessions")


def test_the_judge_sees_what_must_not_be_there() -> None:
    made = context.build(cluster(MASTER, node("a", "10.192.0.3/16"), POOL), "kube-master", speaker="bird")
    good = render.bird_cfg(made, 4, []).decode()
    assert _protocols(good)[-1] == "Mesh_10_192_0_3"
    evil = "Mesh_10_192_0_3 {} protocol static { ipv4; route 0.0.0.0/0 blackhole; } protocol bgp x"
    assert _protocols(good.replace("Mesh_10_192_0_3", evil))[-2:] == ["static", "x"]


@pytest.mark.parametrize("password_", [b'with "quotes"', b"two\nlines", b"nul\0"])
def test_a_password_that_bird_cannot_read_costs_its_session_and_says_so(password_: bytes) -> None:
    snapshot = cluster(*NODES, POOL, configuration(nodeMeshPassword=password()))
    made = context.build(snapshot, "kube-master", secrets={("bgp", "password"): password_}, speaker="bird")
    problems: list[str] = []
    content = render.bird_cfg(made, 4, problems).decode()
    assert "protocol bgp" not in content and len(problems) == 2
    assert all("BIRD takes no password with a quote or a newline" in problem for problem in problems)


@pytest.mark.parametrize(
    ("refused", "because"),
    [
        (peer("p", peerIP="fe80::1", asNumber=65000), "nobody has it everywhere"),
        (peer("p", peerIP="::", asNumber=65000), "nobody has it everywhere"),
        (peer("p", peerIP="0.0.0.0", asNumber=65000), "nobody has it everywhere"),
        (peer("p", peerIP="10.9.9.9", asNumber=65000, localASNumber=0), "no AS number 0"),
        (peer("p", localWorkloadSelector="all()", asNumber=0), "no AS number 0"),
    ],
)
def test_what_bird_would_refuse_costs_its_session_alone(refused: Any, because: str) -> None:
    nodes = (node("kube-master", "10.0.0.1/24", "fd00::1/64"), node("a", "10.0.0.2/24", "fd00::2/64"))
    settings_ = configuration(localWorkloadPeeringIPV4="10.255.0.1")
    found = [LocalPeer("p", ("192.168.1.7/32",))]
    made = context.build(
        cluster(*nodes, POOL, settings_, refused), "kube-master", speaker="bird", local_peers=found
    )
    assert len(made.neighbors) == 3
    problems: list[str] = []
    contents = [render.bird_cfg(made, family, problems) for family in _FAMILIES]
    assert all(map(_accepted, contents))
    assert [_protocols(content.decode())[-1] for content in contents] == ["Mesh_10_0_0_2", "Mesh_fd00__2"]
    (problem,) = problems
    assert because in problem


def test_a_session_starts_anew_for_no_change_of_roles() -> None:
    """BIRD compares names and options; filters and descriptions may change."""
    reflector = node("rr", "10.192.0.9/16", labels={"rr": "true"})
    chosen = node("rr", "10.192.0.9/16", labels={"rr": "true"}, routeReflectorClusterID="244.0.0.1")
    peering = peer("rr", nodeSelector="all()", peerSelector="rr == 'true'")
    steps = [(reflector,), (reflector, peering), (chosen, peering), (chosen, peering, NO_MESH)]
    for at, kept in (("rr", 3), ("kube-master", 1)):
        told = []
        for step in steps:
            made = context.build(cluster(*NODES, POOL, *step), at, speaker="bird")
            told.append(_sessions(render.bird_cfg(made, 4, []).decode()))
        assert [len(one) for one in told] == [3, 3, 3, kept]
        assert told[0] == told[1] == told[2] and told[3].items() <= told[0].items()


def _sessions(text: str) -> dict[str, str]:
    """Name -> all that BIRD starts a session anew for."""
    text = re.sub(r' *description "\w+";\n', "", text)
    text = re.sub(r"(import|export) filter \{.*?\n    \};", "", text, flags=re.S)
    return dict(one.split(" ", 1) for one in text.split("protocol bgp ")[1:])


def test_filters_refuse_rather_than_escape() -> None:
    for value in ["10.0.0.0/8;", "10.0.0.1/8", "x", "10.0.0.0"]:
        with pytest.raises(ConfigError):
            render.prefix(value)
    for value in ['eth"', "eth 0", "", "a" * 16, "eth\n"]:
        with pytest.raises(ConfigError):
            render.interface(value)


def test_what_workloads_announce_is_told_with_our_address_as_next_hop() -> None:
    """Other nodes know the pod's address by BGP alone, and no next hop is resolved by that."""
    settings_ = configuration(localWorkloadPeeringIPV4="10.255.0.1", bindMode="NodeIP")
    pods = peer("pods", localWorkloadSelector="all()", asNumber=65500)
    made = context.build(
        cluster(*NODES, POOL, settings_, pods),
        "kube-master",
        speaker="bird",
        local_peers=[LocalPeer("pods", ("192.168.1.7/32",))],
    )
    content = render.bird_cfg(made, 4, [])
    assert _accepted(content)
    rewritten = "if (from ~ [192.168.1.7]) then bgp_next_hop = 10.192.0.2;"
    found = {part.split()[0]: rewritten in part for part in content.decode().split("protocol bgp ")[1:]}
    assert found == {
        "Local_Workload_192_168_1_7": False,
        "Mesh_10_192_0_3": True,
        "Mesh_10_192_0_10": True,
    }


# --- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "condition"),
    [
        (Rule(accept=False), "true"),
        (Rule(accept=False, cidr="10.1.0.0/16", operator="Equal"), "(net = 10.1.0.0/16)"),
        (Rule(accept=False, cidr="10.1.0.0/16", operator="NotEqual"), "(net != 10.1.0.0/16)"),
        (Rule(accept=False, cidr="10.1.0.0/16", operator="In"), "(net ~ 10.1.0.0/16)"),
        (Rule(accept=False, cidr="10.1.0.0/16", operator="NotIn"), "(net !~ 10.1.0.0/16)"),
        (
            Rule(accept=False, cidr="10.1.0.0/16", operator="Equal", lengths=(24, 26)),
            "(net ~ [ 10.1.0.0/16{24,26} ])",
        ),
        (Rule(accept=False, cidr="10.1.0.0/16", operator="NotIn", lengths=(26, 24)), "(true)"),
        (Rule(accept=False, cidr="10.1.0.0/16", operator="In", lengths=(26, 24)), "(false)"),
        (Rule(accept=False, peer="eBGP", remote=True), "(!is_same_as) && (source = RTS_BGP)"),
        (Rule(accept=False, community=(1, 2, 3)), "((1,2,3) ~ bgp_large_community)"),
        (
            Rule(accept=False, priority=512),
            "(defined(bgp_local_pref) && (bgp_local_pref = 2147483135))",
        ),
        (Rule(accept=False, as_path=(1, 2)), "(bgp_path ~ [= 1 2 * =])"),
    ],
)
def test_conditions_of_an_import_rule(rule: Rule, condition: str) -> None:
    (function,) = birdfilter.functions([Filter(name="f", import4=(rule,))], 4)
    assert function.statements[0].condition == condition


def test_an_export_rule_sees_our_own_as_first_where_the_peer_will() -> None:
    """BIRD 2 puts it there after the filter."""
    rule = Rule(accept=False, as_path=(64512, 65001))
    (function,) = birdfilter.functions([Filter(name="f", export4=(rule,))], 4)
    inner, outer = "bgp_path ~ [= 64512 65001 * =]", "(own_as = 64512) && bgp_path ~ [= 65001 * =]"
    assert function.statements[0].condition == f"((is_same_as && {inner}) || (!is_same_as && {outer}))"


def test_operations_come_in_order_before_the_verdict() -> None:
    operations = (
        Operation(add_community=(65000, 1)),
        Operation(prepend=(65001, 65002)),
        Operation(priority=512),
    )
    given_ = Filter(name="f", import4=(Rule(accept=True, operations=operations),))
    (function,) = birdfilter.functions([given_], 4)
    assert function.statements[0].actions == (
        "bgp_community.add((65000,1));",
        "bgp_path.prepend(65002);",
        "bgp_path.prepend(65001);",
        "bgp_local_pref = 2147483135;",
        "calico_rate();",
        "accept;",
    )


def test_names_that_bird_could_not_read_are_told_by_their_digest() -> None:
    assert birdfilter.function_name("a-b.c", "import", 4) == "bgp_a-b.c_importFilterV4"
    long = birdfilter.function_name("n" * 60, "export", 6)
    assert re.fullmatch(r"bgp_n{28}_[0-9A-F]{16}_exportFilterV6", long) and len(long) <= 64
    assert "'" not in birdfilter.function_name("it's", "import", 4)


# --- putting it in place --------------------------------------------------------------------------


def test_which_prefixes_are_the_agents_is_noted_where_it_said_nothing(tmp_path: Path) -> None:
    """For the BIRD that takes over its routes."""
    _install(tmp_path, *NODES)
    known = load(str(tmp_path / "bgp.json"))
    assert known is not None and [pool.cidr for pool in known.pools] == ["192.168.0.0/16"]
    (tmp_path / "bgp.json").write_text("its own")
    _install(tmp_path, *NODES, node("d", "10.192.0.77/16"))
    assert (tmp_path / "bgp.json").read_text() == "its own"


def _install(folder: Path, *resources: Any) -> bool:
    environment = {"CALICO_CONFD_CONFIG_DIR": str(folder), "CALICO_RUN_DIR": str(folder)}
    made = context.build(cluster(*resources, POOL), "kube-master", speaker="bird")
    changed, _ = asyncio.run(Bird(environment).install(made))
    return changed


def test_files_are_replaced_only_where_they_differ(tmp_path: Path) -> None:
    assert _install(tmp_path, *NODES)
    before = {name: os.stat(tmp_path / name) for name in ("bird.cfg", "bird6.cfg")}
    assert before["bird.cfg"].st_mode & 0o777 == 0o600, "passwords are in it"
    assert not _install(tmp_path, *NODES)
    assert _install(tmp_path, *NODES, node("d", "10.192.0.77/16"))
    after = {name: os.stat(tmp_path / name) for name in before}
    assert after["bird.cfg"].st_ino != before["bird.cfg"].st_ino
    assert after["bird6.cfg"].st_ino == before["bird6.cfg"].st_ino, "nothing in it changed"


def test_what_bird_refuses_is_not_installed(tmp_path: Path) -> None:
    path = tmp_path / "bird.cfg"
    path.write_text("as it was")
    with pytest.raises(ConfigError, match=r"BIRD refuses it: .*syntax error"):
        asyncio.run(files.replace_checked(str(path), b"protocol bgp {", bird.check_argv, "BIRD"))
    assert path.read_text() == "as it was"
    assert [one.name for one in tmp_path.iterdir()] == ["bird.cfg"]


def test_it_ends_though_a_file_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """confd is stopped while BIRD, which has the other family's file, does not answer."""

    async def refuse(path: str, content: bytes, *_: object) -> None:
        if path.endswith("bird6.cfg"):
            raise ConfigError("bird6.cfg", "", "refused")
        Path(path).write_bytes(content)

    async def says_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        connected.set()
        await asyncio.sleep(1)

    async def story() -> None:
        environment = {"CALICO_CONFD_CONFIG_DIR": str(tmp_path), "CALICO_RUN_DIR": str(tmp_path)}
        made = context.build(cluster(*NODES, POOL), "kube-master", speaker="bird")
        async with await asyncio.start_unix_server(says_nothing, tmp_path / "bird.ctl"):
            installing = asyncio.create_task(Bird(environment).install(made))
            await connected.wait()
            installing.cancel()
            await asyncio.wait([installing])
        assert installing.cancelled()

    connected = asyncio.Event()
    monkeypatch.setattr(files, "replace_checked", refuse)
    asyncio.run(story())


def test_a_bird_that_does_not_answer_keeps_the_other_from_nothing(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def hangs_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0001 BIRD ready.\n")
        heard.append(await reader.readline())
        writer.write(b"0003 Reconfigured\n")
        writer.close()

    async def story() -> None:
        environment = {"CALICO_CONFD_CONFIG_DIR": str(tmp_path), "CALICO_RUN_DIR": str(tmp_path)}
        made = context.build(cluster(*NODES, POOL), "kube-master", speaker="bird")
        async with (
            await asyncio.start_unix_server(hangs_up, tmp_path / "bird.ctl"),
            await asyncio.start_unix_server(answers, tmp_path / "bird6.ctl"),
        ):
            with pytest.raises(PeerError, match=r"does not answer on .*bird\.ctl"):
                await Bird(environment).install(made)

    asyncio.run(story())
    assert b"configure\n" in heard

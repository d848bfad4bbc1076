"""Go templates. gotemplate.json holds what Go's text/template prints, or refuses, for the same data."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.calicoctl import gotemplate
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.listing import Listing
from tortie.datastore.types.bgp import BGPPeer, BGPPeerSpec
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ASNumber, ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec
from tortie.datastore.types.policy import Tier, TierSpec

pytestmark = pytest.mark.unit

GO = json.loads((Path(__file__).parent / "gotemplate.json").read_text())


@pytest.mark.parametrize("case", GO["cases"], ids=lambda case: repr(case["template"])[:60])
def test_as_go(case: dict[str, Any]) -> None:
    if "error" not in case:
        assert gotemplate.render(case["template"], GO["data"], "64512") == case["output"]
        return
    with pytest.raises(CommandError) as refused:
        gotemplate.render(case["template"], GO["data"], "64512")
    assert str(refused.value) == case["error"]


META = ObjectMeta(
    name="a",
    uid="u",
    labels={"b": "2", "a": "1"},
    creationTimestamp="2026-03-01T08:00:00Z",
    resourceVersion="7",
)
POOL = IPPool(metadata=META, spec=IPPoolSpec(cidr="10.0.0.0/24", allowedUses=("Workload", "Tunnel")))
NODE = Node(metadata=META, spec=NodeSpec(bgp=NodeBGPSpec(asNumber=ASNumber(64513))))
FELIX = FelixConfiguration(metadata=META, spec={"bpfEnabled": True, "wireguardKeepAlive": "30s"})


@pytest.mark.parametrize(
    ("template", "data", "output"),
    [
        (
            "{{.Kind}} {{.APIVersion}} {{.Name}} {{.ObjectMeta.Name}} {{.UID}}",
            POOL,
            "IPPool projectcalico.org/v3 a a u",
        ),
        (
            "{{.TypeMeta.Kind}} {{.Labels.a}} {{.Labels.none}} {{.Labels}}",
            POOL,
            "IPPool 1 <no value> map[a:1 b:2]",
        ),
        ("{{.CreationTimestamp}} {{.DeletionTimestamp}}", POOL, "2026-03-01 08:00:00 +0000 UTC <nil>"),
        ("{{.Spec.CIDR}} {{.Spec.NATOutgoing}} {{.Spec.BlockSize}}", POOL, "10.0.0.0/24 false 0"),
        ("{{.Spec.AllowedUses}} {{len .Spec.AllowedUses}}", POOL, "[Workload Tunnel] 2"),
        ("{{range $i, $u := .Spec.AllowedUses}}{{$i}}{{$u}}{{end}}", POOL, "0Workload1Tunnel"),
        ("{{.spec.cidr}} {{.metadata.name}}", POOL, "10.0.0.0/24 a"),
        ("{{if .Spec.AssignmentMode}}x{{else}}unset{{end}}", POOL, "unset"),
        ("{{.Spec.BGP.ASNumber}} {{.Spec.BGP.IPv4Address}}", NODE, "64513 "),
        ("{{with .Spec.BGP}}{{.ASNumber}}{{end}}{{with .Spec.Wireguard}}w{{end}}", NODE, "64513"),
        (
            "{{.Spec.BPFEnabled}} {{.Spec.Ipv6Support}} {{.Spec.WireguardPersistentKeepAlive}}",
            FELIX,
            "true <nil> 30s",
        ),
        (
            "{{.Kind}} {{.ResourceVersion}} {{len .Items}}",
            Listing("IPPool", (POOL, POOL), "9"),
            "IPPoolList 9 2",
        ),
        ("{{.ListMeta.ResourceVersion}}", Listing("IPPool", (), "9"), "9"),
        ("{{.Spec.Order}}", Tier(spec=TierSpec(order=1000000.0)), "1e+06"),
        ("{{.Spec.Order}} {{.Spec.DefaultAction}}", Tier(), "<nil> <nil>"),
        ("{{if eq .Spec.Node ``}}none{{end}} {{.Spec.ASNumber}}", BGPPeer(spec=BGPPeerSpec()), "none 0"),
        ("{{range .}}{{.Name}}{{end}}", [POOL, NODE], "aa"),
    ],
)
def test_resources_as_go_sees_them(template: str, data: Any, output: str) -> None:
    assert gotemplate.render(template, data) == output


@pytest.mark.parametrize(
    ("template", "data", "problem"),
    [
        ("{{.Spec.Foo}}", POOL, "<.Spec.Foo>: can't evaluate field Foo in type v3.IPPoolSpec"),
        ("{{.Foo}}", POOL, "<.Foo>: can't evaluate field Foo in type *v3.IPPool"),
        ("{{.Origin}}", POOL, "can't evaluate field Origin"),
        ("{{.Spec.BGP.ASNumber}}", Node(), "nil pointer evaluating ASNumber"),
        ('{{config "color"}}', POOL, "unhandled config type"),
        ("{{define `a`}}{{template `a`}}{{end}}{{template `a`}}", POOL, "exceeded maximum template depth"),
        ("{{" + "(" * 60 + "1" + ")" * 60 + "}}", POOL, "nested too deeply"),
    ],
)
def test_what_is_refused(template: str, data: Any, problem: str) -> None:
    with pytest.raises(CommandError) as refused:
        gotemplate.render(template, data)
    assert problem in str(refused.value)


@given(st.text(), st.text())
def test_strings_of_the_data_steer_no_terminal(name: str, value: str) -> None:
    pool = IPPool(metadata=ObjectMeta(name=name, labels={value: name}), spec=IPPoolSpec(allowedUses=(value,)))
    template = "{{.Name}}{{.Labels}}{{join .Spec.AllowedUses `,`}}{{range .Spec.AllowedUses}}{{.}}{{end}}"
    template += (
        "{{printf `%s %v` .Name .Labels}}{{range $k, $v := .Labels}}{{$k}}{{$v}}{{end}}{{.}}{{html .Name}}"
    )
    assert gotemplate.render(template, pool).isprintable()


PIECES = [
    "{{", "}}", "{{-", "-}}", ".", ".a", "$", "$x", ":=", "=", "|", "(", ")", "if", "range", "with", "end",
    "else", "define", "template", "block", "break", "printf", "len", "index", "eq", "nil", "true", "1", "1.5",
    '"s"', "`r`", "'c'", ",", "/*", "*/", "text", "and", "or", "%",
]  # fmt: skip


@given(st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=14).map("".join))
def test_any_template_prints_or_is_refused(template: str) -> None:
    try:
        gotemplate.render(template, {"a": {"a": [1, "x"]}})
    except CommandError as refused:
        assert str(refused).startswith("template: get:")

"""What is printed never steers a terminal and never loses a row; every kind survives the way out and in."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tortie.calicoctl import documents, kinds, manifest, operations, output
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.listing import Listing
from tortie.calicoctl.output import Format
from tortie.datastore import codec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta, Resource

pytestmark = pytest.mark.unit

STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
HOSTILE = st.text(
    alphabet=st.characters(codec="utf-8") | st.sampled_from("\x1b\r\n\t\x7f\x9b\u202e"), max_size=20
)


@st.composite
def resources(draw: Any) -> Resource:
    """A resource of any kind, with hostile text in every string that its tables show."""
    managed = kinds.MANAGED[draw(st.sampled_from(sorted(kinds.MANAGED)))]
    text = HOSTILE
    spec: dict[str, Any] = {
        name: draw(text)
        for name in (
            "peerIP",
            "node",
            "nodeSelector",
            "selector",
            "tier",
            "cidr",
            "interfaceName",
            "workload",
            "pod",
        )
    }
    spec |= {
        name: draw(st.lists(text, max_size=9)) for name in ("nets", "reservedCIDRs", "ipNetworks", "profiles")
    }
    spec |= {"labelsToApply": draw(st.dictionaries(text, text, max_size=3)), "ipipMode": draw(text)}
    known = {f.encode_name for f in structs.fields(structs.fields(managed.type)[-1].type)} if (
        managed.name not in ("FelixConfiguration", "KubeControllersConfiguration")
        and isinstance(structs.fields(managed.type)[-1].type, type)
    ) else set()  # fmt: skip
    raw = {
        "kind": managed.name,
        "metadata": {"name": draw(text), "namespace": draw(text), "labels": {draw(text): draw(text)}},
        "spec": {name: value for name, value in spec.items() if name in known},
    }
    return codec.from_plain(managed.type, raw)


@given(st.lists(resources(), max_size=4), st.booleans(), st.booleans())
def test_tables_steer_no_terminal(found: list[Resource], wide: bool, namespace: bool) -> None:
    text = output.render(Format("table", wide=wide), found, with_namespace=namespace, cluster_as="64512")
    assert not STEERING.search(text)
    tables = text.split("\n\n")[:-1]
    assert len(tables) == len(found)
    for table in tables:
        heading, row = table.split("\n")
        assert len(heading) == len(row)


@given(st.lists(resources(), max_size=3))
def test_yaml_and_json_steer_no_terminal_and_say_the_same(found: list[Resource]) -> None:
    yaml = output.render(Format("yaml"), found, with_namespace=False, cluster_as="")
    json = output.render(Format("json"), found, with_namespace=False, cluster_as="")
    assert not STEERING.search(yaml) and not STEERING.search(json)
    assert documents.parse(yaml.encode()) == msgspec.json.decode(json)


@given(resources())
def test_a_resource_survives_the_way_out_and_in(resource: Resource) -> None:
    for style in ("yaml", "json"):
        text = output.render(Format(style), [resource], with_namespace=False, cluster_as="")
        (back,) = manifest.from_document(documents.parse(text.encode()))
        assert operations.known(back) == operations.known(resource)


def test_a_list_survives_as_well() -> None:
    listing = Listing(
        "IPPool", (IPPool(metadata=ObjectMeta(name="a")), IPPool(metadata=ObjectMeta(name="b"))), "7"
    )
    text = output.render(Format("yaml"), [listing], with_namespace=False, cluster_as="")
    assert [resource.name for resource in manifest.from_document(documents.parse(text.encode()))] == [
        "a",
        "b",
    ]


def test_fields_that_a_type_does_not_have_are_not_shown() -> None:
    pool = codec.from_plain(IPPool, {"kind": "IPPool", "metadata": {"name": "a"}, "spec": {"later": 1}})
    for style in ("yaml", "json"):
        assert "later" not in output.render(Format(style), [pool], with_namespace=False, cluster_as="")


def test_whole_numbers_are_written_without_a_fraction() -> None:
    tier = codec.from_plain(kinds.by_alias("tier").type, {"kind": "Tier", "spec": {"order": 1000000.0}})
    assert "order: 1000000\n" in output.render(Format("yaml"), [tier], with_namespace=False, cluster_as="")


def test_every_alias_leads_to_its_kind_in_any_case() -> None:
    assert len(kinds.MANAGED) == 22
    for managed in kinds.MANAGED.values():
        for alias in managed.aliases:
            assert kinds.by_alias(alias.upper()) is managed
        assert set(managed.columns) | set(managed.wide) <= set(managed.cells)
        assert ("NAMESPACE" in managed.cells) == managed.namespaced
    with pytest.raises(CommandError, match="resource type 'BlockAffinity' is not supported"):
        kinds.by_alias("BlockAffinity")


def test_long_lists_are_cut_at_80_characters() -> None:
    nets = tuple(f"10.{number}.0.0/16" for number in range(9))
    networks = kinds.by_alias("gnetsets")
    full = ",".join(nets)
    resource = codec.from_plain(networks.type, {"kind": "GlobalNetworkSet", "spec": {"nets": list(nets)}})
    assert networks.cells["NETS"](resource) == full[:77] + "..."
    exact = codec.from_plain(networks.type, {"kind": "GlobalNetworkSet", "spec": {"nets": ["x" * 80]}})
    assert networks.cells["NETS"](exact) == "x" * 80


def test_a_pool_read_from_old_data_prints_never() -> None:
    pool = IPPool(metadata=ObjectMeta(name="old"), spec=IPPoolSpec(cidr="10.0.0.0/8"))
    text = output.render(Format("table", wide=True), [pool], with_namespace=False, cluster_as="")
    assert text.splitlines()[1].split() == [
        "old",
        "10.0.0.0/8",
        "false",
        "Never",
        "Never",
        "false",
        "false",
        "<nil>",
    ]

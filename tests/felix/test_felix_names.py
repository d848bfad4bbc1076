"""Names and marks: Calico's vectors, bounded length, and nothing hostile in them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.core.errors import ConfigError
from tortie.datastore.selector import parse
from tortie.felix.rules import marks, names

pytestmark = pytest.mark.unit


def test_chains_of_objects_are_calicos() -> None:
    assert names.chain(names.PROFILE_IN, "kns.default") == "cali-pri-kns.default"
    assert names.chain(names.TO_WORKLOAD, "cali12345678901") == "cali-tw-cali12345678901"
    any_interface = "any-interface-at-all"
    assert names.chain(names.TO_HOST_FORWARD, any_interface) == "cali-thfw-_Nqh4HyA73udmyanQI"
    assert names.chain(names.TO_HOST, any_interface) == "cali-th-any-interface-at-all"
    assert names.chain(names.POLICY_IN, "knp/default/allow-dns-and-more") == "cali-pi-_3zNcQ8_wPwGm_tAx4ZR"


def test_sets_are_cut_where_the_kernel_ends() -> None:
    ident = parse("all()").id
    assert names.ip_set(4, ident) == "cali40s:5y5I3VdRZfDU01O--xXAPx2"
    assert names.ip_set(6, "masq-ipam-pools") == "cali60masq-ipam-pools"


@given(st.text(max_size=300))
def test_no_name_of_the_datastore_reaches_a_chain_name_unless_harmless(name: str) -> None:
    chain = names.chain(names.PROFILE_IN, name)
    assert re.fullmatch(r"cali-pri-[A-Za-z0-9_.:/-]+", chain)
    assert len(chain) <= 28


@given(st.text(max_size=40), st.text(max_size=40))
def test_different_objects_have_different_chains(one: str, other: str) -> None:
    same = names.chain(names.POLICY_IN, one) == names.chain(names.POLICY_IN, other)
    assert same == (one == other)


def test_marks_are_handed_out_from_the_lowest_bit() -> None:
    plain = marks.allocate(0xFFFF0000)
    assert (plain.accept, plain.passed, plain.drop) == (0x10000, 0x20000, 0x40000)
    assert (plain.scratch0, plain.scratch1, plain.wireguard) == (0x80000, 0x100000, 0)
    assert plain.endpoint == 0xFFE00000
    assert plain.cleared == 0x1B0000
    with_wireguard = marks.allocate(0xFFFF0000, wireguard=True)
    assert (with_wireguard.wireguard, with_wireguard.endpoint) == (0x200000, 0xFFC00000)


def test_too_narrow_a_mask_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="IptablesMarkMask"):
        marks.allocate(0xF)

"""The packet walk shows the article's three routing tables, as a run printed them."""

import re
from pathlib import Path

import pytest

from tests.support.routingtables import ARTICLE, OURS, shapes

pytestmark = pytest.mark.unit

_PAGE = Path(__file__).resolve().parents[2] / "docs/packet-walk.md"

# Line for line as there, with other addresses.
_OF_THE_ARTICLE = {
    "ipip": """\
default via 10.1.0.1 dev ens3
10.1.0.0/16 dev ens3 proto kernel scope link src 10.1.0.32
blackhole 10.9.49.64/26 proto bird
10.9.49.65 dev calic22dbe57533 scope link
10.9.49.66 dev cali9861acf9f07 scope link
10.9.196.128/26 via 10.1.0.40 dev tunl0 proto bird onlink
""",
    "direct": """\
default via 10.1.0.1 dev ens3
10.1.0.0/16 dev ens3 proto kernel scope link src 10.1.0.32
blackhole 10.9.49.64/26 proto bird
10.9.49.65 dev calic22dbe57533 scope link
10.9.49.66 dev cali9861acf9f07 scope link
10.9.196.128/26 via 10.1.0.40 dev ens3 proto bird
""",
    "vxlan": """\
default via 10.1.0.1 dev ens3
10.1.0.0/16 dev ens3 proto kernel scope link src 10.1.0.15
10.9.49.65 dev calif5cc38277c7 scope link
10.9.49.66 dev cali840c047460a scope link
10.9.196.128/26 via 10.9.196.128 dev vxlan.calico onlink
""",
}


@pytest.mark.parametrize("mode", ARTICLE)
def test_what_is_compared_with_is_the_articles(mode: str) -> None:
    assert shapes(_OF_THE_ARTICLE[mode]) == ARTICLE[mode]


def test_the_walk_shows_them_all() -> None:
    """In this order: without a tunnel, VXLAN, and back; IPIP, and back."""
    tables = re.findall(r"^node-1\$ ip route\n(.*?)^(?:$|```)", _PAGE.read_text(), re.M | re.S)
    assert [shapes(table) for table in tables] == [
        OURS[mode] for mode in ("direct", "vxlan", "direct", "ipip", "direct")
    ]

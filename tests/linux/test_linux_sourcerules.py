"""Rules by source in a real kernel: made, found again, taken away, and nobody else's touched."""

import pytest

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.linux import sourcerules
from tortie.linux.sourcerules import SourceRule

pytestmark = pytest.mark.kernel

V4, V6 = SourceRule("10.0.0.1", 65539, 30000), SourceRule("fd00::1", 101, 30000)


def test_rules_come_and_go(netns: Namespace) -> None:
    """As `ip rule` sees them; rules that ask for more than a source are not ours to read."""
    netns.run("ip", "rule", "add", "from", "10.0.0.1", "fwmark", "1", "lookup", "7", "pref", "5")
    netns.run("ip", "rule", "add", "from", "10.0.0.0/24", "lookup", "7", "pref", "6")
    netns.run("ip", "rule", "add", "from", "10.0.0.1", "iif", "lo", "lookup", "7", "pref", "7")
    netns.netlink.execute(sourcerules.add(V4), sourcerules.add(V6))
    assert "from 10.0.0.1 lookup 65539" in netns.run("ip", "rule")
    assert "from fd00::1 lookup 101" in netns.run("ip", "-6", "rule")
    assert sourcerules.dump(netns.netlink) == [V4, V6]
    (error,) = netns.netlink.request([sourcerules.add(V4)])
    assert error is not None and "from 10.0.0.1 lookup 65539" in str(error)
    netns.netlink.execute(sourcerules.delete(V4), sourcerules.delete(V6))
    assert sourcerules.dump(netns.netlink) == []
    assert netns.run("ip", "rule").count("lookup 7") == 3


@pytest.mark.unit
def test_what_is_no_rule_is_refused() -> None:
    with pytest.raises(KernelError):
        sourcerules.add(SourceRule("x", 1, 1))
    with pytest.raises(KernelError):
        sourcerules.decode(b"\x02")

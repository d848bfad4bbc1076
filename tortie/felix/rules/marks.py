"""Which packet mark bit means what, cut out of the mask the user leaves to us.

(Reference: policy sheet 5.1; Calico's felix/markbits and felix/dataplane/driver.go.)
"""

from dataclasses import dataclass

from tortie.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Marks:
    """Single bits, but for `endpoint`, a field that holds an endpoint's number (IPVS only).

    accept: some policy or profile let the packet through.     passed: go on with the next tier.
    drop: set by a deny rule just before it drops.
    scratch0, scratch1: within one chain.
    wireguard: 0 unless WireGuard is on.
    """

    accept: int
    passed: int
    drop: int
    scratch0: int
    scratch1: int
    wireguard: int
    endpoint: int

    @property
    def left_for_wireguard(self) -> int:
        """What `wireguard` is while that is on, and was if it has been; 0 if no bit would be left for it."""
        return self.wireguard or self.endpoint & -self.endpoint

    @property
    def cleared(self) -> int:
        """The bits static chains clear: all that describe one traversal."""
        return self.accept | self.passed | self.scratch0 | self.scratch1


def allocate(mask: int, *, wireguard: bool = False, parameter: str = "IptablesMarkMask") -> Marks:
    """Hand out the bits of `mask` from the lowest upward. Raises ConfigError if they do not suffice.

    `parameter` is where the mask comes from.
    """
    bits = [1 << number for number in range(32) if mask & (1 << number)]
    needed = 6 if wireguard else 5
    if len(bits) < needed:
        raise ConfigError(parameter, hex(mask), f"has {len(bits)} bits, {needed} are needed")
    accept, passed, drop, scratch0, scratch1, *rest = bits
    wireguard_bit = rest.pop(0) if wireguard else 0
    return Marks(accept, passed, drop, scratch0, scratch1, wireguard_bit, sum(rest))

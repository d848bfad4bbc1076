"""How many addresses a node keeps ready, and what is told of it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.core.errors import ConfigError
from tortie.core.exposition import Metric

_VARIABLE, _IDLE_VARIABLE = "TORTIE_WARM_POOL", "TORTIE_WARM_POOL_IDLE"
_MOST = 256  # more than twice the pods a node runs would only keep addresses from other nodes
_IDLE = 300.0  # seconds: longer than a rolling update leaves a node without a new pod


@dataclass(frozen=True, slots=True)
class Marks:
    """Below `low` ready addresses, as many are got as make it `high`; when none has been needed for
    `idle` seconds, those above `low` go back. Both 0: none are kept.
    """

    low: int = 0
    high: int = 0
    idle: float = _IDLE

    @property
    def note(self) -> str:
        """What the addresses themselves say of it."""
        return f"low {self.low}, high {self.high}"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Marks":
        """TORTIE_WARM_POOL is `LOW:HIGH`, unset for none. Raises ConfigError."""
        if not (text := env.get(_VARIABLE, "")):
            return cls()
        found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text, re.ASCII)
        low, high = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= low <= high <= _MOST:
            raise ConfigError(_VARIABLE, text, f"must be LOW:HIGH with 1 <= LOW <= HIGH <= {_MOST}")
        return cls(low, high, _idle(env.get(_IDLE_VARIABLE, "")))


def _idle(text: str) -> float:
    if not text:
        return _IDLE
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        raise ConfigError(_IDLE_VARIABLE, text, "must be a number of seconds")
    return float(text)


def change(ready: int, marks: Marks, idle: float) -> int:
    """How many addresses to get, or (negative) to give back; nobody has needed one for `idle` seconds."""
    if ready < marks.low:
        return marks.high - ready
    if ready > marks.high:
        return marks.high - ready
    return marks.low - ready if idle >= marks.idle else 0


@dataclass(slots=True)
class Counters:
    """Since the start of the process."""

    taken: int = 0  # addresses handed out of the ready ones
    missed: int = 0  # times an address was wanted and none was ready
    short: int = 0  # times the pools had fewer than were wanted
    lost: int = 0  # addresses handed out that somebody had released and another got


def metrics(ready: Mapping[int, int], handing_over: int, marks: Marks, counters: Counters) -> list[Metric]:
    """`ready` is IP version -> number of addresses."""
    versions = [({"version": str(version)}, number) for version, number in ready.items()]
    gauges = {
        "low": (marks.low, "Below so many ready addresses the node gets more."),
        "high": (marks.high, "So many ready addresses a node gets."),
        "handing_over": (
            handing_over,
            "Addresses of containers that the datastore has yet to hear of.",
        ),
    }
    totals = {
        "taken": (counters.taken, "Ready addresses given to containers."),
        "missed": (counters.missed, "Times an address was wanted and none was ready."),
        "shortages": (counters.short, "Times the pools had fewer addresses than the node wanted."),
        "lost": (counters.lost, "Addresses given to containers that somebody released and another got."),
    }
    return [
        Metric("tortie_ipam_warm_addresses", "Addresses that the node has ready.", versions),
        *(Metric(f"tortie_ipam_warm_{name}", text, [({}, n)]) for name, (n, text) in gauges.items()),
        *(
            Metric(f"tortie_ipam_warm_{name}_total", text, [({}, n)], "counter")
            for name, (n, text) in totals.items()
        ),
    ]

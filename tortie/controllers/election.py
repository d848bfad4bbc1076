"""Who of several controllers works: a Lease that one holds and renews. Pure.

As client-go's leader election: whoever sees the same record unrenewed for its whole time takes it over.
That is measured on one's own clock from when the record was first seen so: no two clocks are compared.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEASE_TIME = 15.0  # seconds a holder may be silent; client-go's
RENEW_EVERY = 2.0  # seconds; client-go's
GIVE_UP_AFTER = 10.0  # seconds without a renewal after which a holder stops working; client-go's

Lease = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as it was first seen, and when (own clock, seconds)."""

    record: tuple[str, str, int] = ("", "", 0)  # holder, time of renewal, transitions
    since: float = 0.0


def record_of(lease: Lease) -> tuple[str, str, int]:
    spec = lease.get("spec") or {}
    return (
        str(spec.get("holderIdentity") or ""),
        str(spec.get("renewTime") or ""),
        int(spec.get("leaseTransitions") or 0),
    )


def seen(lease: Lease, before: Seen, now: float) -> Seen:
    found = record_of(lease)
    return before if found == before.record else Seen(found, now)


def may_take(lease: Lease, known: Seen, me: str, now: float) -> bool:
    """Whether the Lease is mine already, nobody's, or its holder's no more."""
    holder, _, _ = known.record
    if holder in ("", me):
        return True
    spec = lease.get("spec") or {}
    return now >= known.since + float(spec.get("leaseDurationSeconds") or LEASE_TIME)


def new(namespace: str, name: str, me: str, wall: float) -> dict[str, Any]:
    """`wall` is Unix time in seconds."""
    empty = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"namespace": namespace, "name": name},
    }
    return taken(empty, me, wall)


def taken(lease: Lease, me: str, wall: float) -> dict[str, Any]:
    """Renewed by its holder, or taken over; what else is in it stays."""
    changed = copy.deepcopy(dict(lease))
    spec = dict(changed.get("spec") or {})
    before, stamp = str(spec.get("holderIdentity") or ""), _stamp(wall)
    if before != me:
        spec["acquireTime"] = stamp
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if before else 0)
    changed["spec"] = spec | {
        "holderIdentity": me,
        "leaseDurationSeconds": int(LEASE_TIME),
        "renewTime": stamp,
    }
    return changed


def given_up(lease: Lease) -> dict[str, Any]:
    """So that the next one need not wait."""
    changed = copy.deepcopy(dict(lease))
    changed["spec"] = dict(changed.get("spec") or {}) | {"holderIdentity": "", "leaseDurationSeconds": 1}
    return changed


def _stamp(wall: float) -> str:
    """metav1.MicroTime."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall))
    return f"{whole}.{int(wall % 1 * 1_000_000):06d}Z"

"""The report of an audit, and what may be released because of one or several. Pure.

A report is a file that a person keeps, so it says which cluster it is of and which state of it. The
JSON is Calico's (calicoctl/commands/ipam/check.go); either program releases from the other's reports.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tortie.core.errors import ConfigError
from tortie.datastore.types.cluster import ClusterInformation
from tortie.ipam.audit import Allocation, Audit, user_of
from tortie.ipam.block import ReleaseRequest


class ReportedAllocation(msgspec.Struct, frozen=True, rename="camel"):
    """One address of a report, as far as a release needs it."""

    ip: str
    handle: str = ""
    sequence_number: int | None = None
    in_use: bool = False
    cooling_down: bool = False


class ReportedHandle(msgspec.Struct, frozen=True):
    """`UID` is null in etcd, which has none."""

    ID: str
    Revision: str = ""
    UID: str | None = None


class Report(msgspec.Struct, frozen=True):
    """A report as it is read back."""

    version: str = ""
    clusterGUID: str = ""
    clusterInformationRevision: str = ""
    datastoreLocked: bool = False
    allocations: dict[str, tuple[ReportedAllocation, ...]] = {}
    leakedHandles: tuple[ReportedHandle, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """What all reports agree on: addresses nobody uses, and handle ID -> revision without addresses."""

    addresses: tuple[ReleaseRequest, ...]
    handles: Mapping[str, str]


def dump(found: Audit, cluster: ClusterInformation, version: str) -> str:
    report: dict[str, Any] = {
        "version": version,
        "clusterGUID": cluster.spec.clusterGUID,
        "datastoreLocked": cluster.spec.datastoreReady is False,
        "clusterInformationRevision": cluster.revision,
        "clusterType": cluster.spec.clusterType,
        "allocations": {
            address: [_allocation(one) for one in found.allocations[address]]
            for address in sorted(found.allocations)
        },
    }
    if found.leaked_handles:
        report["leakedHandles"] = [
            {"ID": handle, "UID": None, "Revision": revision}
            for handle, revision in found.leaked_handles.items()
        ]
    return json.dumps(report, indent=2, ensure_ascii=False)


def _allocation(one: Allocation) -> dict[str, Any]:
    written: dict[str, Any] = {"ip": one.address}
    if one.handle:
        written["handle"] = one.handle
    written["sequenceNumber"] = one.sequence_number
    user = user_of(one)
    written |= {key: user[key] for key in _USER if key in user}
    written["inUse"] = one.in_use
    written |= {"borrowed": True} if one.borrowed else {}
    written |= {"coolingDown": True} if one.cooling else {}
    written["owners"] = list(one.owners) or None
    return written


_USER = ("pod", "namespace", "node", "type", "creationTimestamp")  # in Calico's order


def load(text: bytes, path: str) -> Report:
    """Raises ConfigError if the file is no report."""
    try:
        return msgspec.json.decode(text, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(path, "report", str(err)) from err


def common(reports: Sequence[Report]) -> Release:
    """What every report calls unused, and is the same in all: an address may have been given anew between.

    Calico compares addresses alone.
    """
    addresses: dict[str, ReleaseRequest] | None = None
    handles: dict[str, str] | None = None
    for report in reports:
        unused = {one.ip: _request(one) for one in _listed(report) if not (one.in_use or one.cooling_down)}
        leaked = {handle.ID: handle.Revision for handle in report.leakedHandles}
        if addresses is not None and handles is not None:
            unused = {ip: request for ip, request in unused.items() if addresses.get(ip) == request}
            leaked = {ID: rev for ID, rev in leaked.items() if handles.get(ID) == rev}
        addresses, handles = unused, leaked
    return Release(tuple((addresses or {}).values()), handles or {})


def _listed(report: Report) -> Iterable[ReportedAllocation]:
    return (one for found in report.allocations.values() for one in found)


def _request(one: ReportedAllocation) -> ReleaseRequest:
    return ReleaseRequest(one.ip, one.handle, one.sequence_number)

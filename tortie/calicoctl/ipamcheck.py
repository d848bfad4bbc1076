"""`ipam check`: what is wrong with the cluster's addresses, as text and as a report.

(Reference: IPAM, section 6.) The lines are Calico's; findings that Calico does not look for come after
its own, and only if there are any.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tortie import __version__
from tortie.calicoctl import ipambooks, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.session import Session
from tortie.core.files import write_atomic
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.ipam import reports
from tortie.ipam.audit import RESERVED_FOR_WINDOWS, Allocation, Audit, Use, audit

T = TypeVar("T")

_MOST_NODES = 20  # shown with their numbers of allocations


def check(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        client = current.client()
        cluster = await client.get(ClusterInformation, "default")
        kubeconfig = call.flags["kubeconfig"] or call.env.get("KUBECONFIG") or current.kubeconfig
        loaded = await ipambooks.load(client, kubeconfig)
        found = audit(loaded.books, time.time_ns())
        everything = call.flags["show-all-ips"]
        call.out(text(loaded, found, everything=everything, problems=call.flags["show-problem-ips"]))
        if path := call.flags["output"]:
            try:
                write_atomic(path, reports.dump(found, cluster, __version__))
            except OSError as err:
                raise CommandError(f"cannot write the report {path}: {err.strerror or err}") from err

    session.run(call, work)


# --- text, all pure -------------------------------------------------------------------------------


def text(loaded: ipambooks.Loaded, found: Audit, *, everything: bool, problems: bool) -> str:
    """The whole output; `everything` also lists each address, `problems` those with something wrong."""
    told = _Told(loaded, found, everything, problems or everything)
    return "".join(f"{printable(line)}\n" for line in told.lines())


class _Told:
    def __init__(self, loaded: ipambooks.Loaded, found: Audit, everything: bool, problems: bool) -> None:
        self._loaded, self._found = loaded, found
        self._everything, self._problems = everything, problems

    def lines(self) -> Iterator[str]:
        yield from ("Checking IPAM for inconsistencies...", "")
        yield from self._blocks()
        yield from self._pools()
        yield from self._users()
        yield from self._nodes()
        yield from self._addresses()
        yield from self._handles()
        yield from self._invalid()
        yield from self._beyond_calico()
        yield f"Check complete; found {self._found.problems} problems."

    def _blocks(self) -> Iterator[str]:
        found = self._found
        yield "Loading all IPAM blocks..."
        yield f"Found {len(found.blocks)} IPAM blocks."
        by_block = _by_block(found)
        for stored in found.blocks:
            if stored.block is None:
                continue
            yield f" IPAM block {stored.block.cidr} affinity={stored.block.affinity or '<none>'}:"
            for one in by_block.get(stored.block.cidr, ()) if self._everything else ():
                if RESERVED_FOR_WINDOWS in one.owners:
                    yield f"  {one.address} belongs to {RESERVED_FOR_WINDOWS}"
                yield f"  {one.address} allocated; attrs {attributes(one.attribute)}"
        yield f"IPAM blocks record {sum(map(len, found.allocations.values()))} allocations."
        yield ""

    def _pools(self) -> Iterator[str]:
        yield "Loading all IPAM pools..."
        yield from (f"  {pool}" for pool in self._loaded.books.pools)
        yield f"Found {len(self._loaded.books.pools)} active IP pools."
        yield ""

    def _users(self) -> Iterator[str]:
        loaded = self._loaded
        yield "Loading all nodes."
        yield from self._belongs(loaded.nodes)
        yield f"Found {len(loaded.nodes)} node tunnel IPs."
        yield from ("", "Loading all service load balancer IPs.")
        if loaded.services is None:
            yield loaded.no_services
        else:
            yield from self._belongs(loaded.service_uses)
            yield f"Found {loaded.services} service load balancer(s)."
        yield from ("", "Loading all workload endpoints.")
        yield from self._belongs(loaded.workloads)
        yield f"Found {len(loaded.workloads)} workload IPs."
        yield f"Workloads and nodes are using {len(self._found.uses)} IPs."
        yield from ("", "Loading all handles")

    def _belongs(self, uses: Iterable[Use]) -> Iterator[str]:
        if self._everything:
            yield from (f"  {use.address} belongs to {use.owner}" for use in uses)

    def _nodes(self) -> Iterator[str]:
        counts = self._found.by_node
        yield f"Looking for top (up to {_MOST_NODES}) nodes by allocations..."
        yield from (f"  {node} has {number} allocations" for node, number in counts[:_MOST_NODES])
        if counts:
            median = counts[len(counts) // 2][1]
            yield f"Node with most allocations has {counts[0][1]}; median is {median}"
        yield ""

    def _addresses(self) -> Iterator[str]:
        found = self._found
        yield "Scanning for IPs that are allocated but not actually in use..."
        for address in self._listed(found.leaked):
            for one in found.allocations[address]:
                yield f"  {address} leaked; attrs {attributes(one.attribute)}"
        yield f"Found {len(found.leaked)} IPs that are allocated in IPAM but not actually in use."
        yield "Scanning for IPs that are in use by a workload or node but not allocated in IPAM..."
        yield from (f"  {address} has multiple owners." for address in self._listed(found.double))
        yield from self._used(found.outside, "is not in any active IP pool.")
        yield from self._used(found.missing, "and in active IPAM pool but has no IPAM allocation.")
        yield f"Found {len(found.outside)} in-use IPs that are not in active IP pools."
        yield (
            f"Found {len(found.missing)} in-use IPs that are in active IP pools but have no corresponding "
            "IPAM allocation."
        )
        yield ""

    def _used(self, which: Sequence[str], how: str) -> Iterator[str]:
        for address in self._listed(which):
            for owner in self._found.uses[address]:
                yield f"  {address} in use by {owner} {how}"

    def _handles(self) -> Iterator[str]:
        found = self._found
        yield "Scanning for IPAM handles with no matching IPs..."
        if self._everything:
            yield from (f"  {handle} doesn't have any active IPs." for handle in found.leaked_handles)
        yield (
            f"Found {len(found.leaked_handles)} handles with no matching IPs "
            f"(and {found.good_handles} handles with matches)."
        )
        yield "Scanning for IPs with missing handle..."
        for handle in self._listed(found.missing_handles):
            yield f"  {handle} is in use in a block but doesn't exist."
        number = len(found.missing_handles)
        yield f"Found {number} handles mentioned in blocks with no matching handle resource."

    def _invalid(self) -> Iterator[str]:
        yield "Validating IPAMBlock structures..."
        for path, fault in self._found.invalid:
            yield f"  IPAMBlock {path} is invalid: {fault}"
        yield f"Found {len(self._found.invalid)} invalid IPAMBlocks."

    def _beyond_calico(self) -> Iterator[str]:
        found = self._found
        if found.double:
            yield f"Found {len(found.double)} IPs with multiple owners."
        if found.orphaned:
            for cidr, node in self._listed(found.orphaned):
                yield f"  {cidr} belongs to node {node}, which does not exist."
            yield f"Found {len(found.orphaned)} blocks affine to nodes that no longer exist."
        if found.inconsistent:
            yield from (f"  {fault}." for fault in self._listed(found.inconsistent))
            yield f"Found {len(found.inconsistent)} inconsistent blocks or affinities."

    def _listed(self, which: Iterable[T]) -> Iterable[T]:
        return which if self._problems else ()


def _by_block(found: Audit) -> Mapping[str, Sequence[Allocation]]:
    """Block CIDR -> its allocations."""
    by_block: dict[str, list[Allocation]] = {}
    for allocations in found.allocations.values():
        for one in allocations:
            by_block.setdefault(one.block, []).append(one)
    return by_block


def attributes(attribute: AllocationAttribute) -> str:
    """All that is known of an allocation, in Calico's one-line form."""
    text = f"Main:{attribute.handle_id or '<none>'} Extra:{_pairs(attribute.secondary)}"
    if attribute.alternateOwnerAttrs:
        text += f" Alternate:{_pairs(attribute.alternateOwnerAttrs)}"
    return text


def _pairs(given: Mapping[str, str]) -> str:
    return ",".join(f"{key}={given[key]}" for key in sorted(given))

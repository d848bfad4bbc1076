"""`ipam release`: one address, or what reports of `ipam check` agree is leaked.

A report is old when it is used. Three things keep a release by report from taking an address away that
is in use: the address must still be the same allocation (handle and sequence number), nobody may use it
by now, and the datastore should be locked meanwhile. (Reference: IPAM, section 6.)
"""

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tortie import __version__
from tortie.calicoctl import ipambooks, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.clusterlock import is_locked
from tortie.calicoctl.errors import CommandError, Refusal, printable
from tortie.calicoctl.session import Session
from tortie.core.errors import (
    ConfigError,
    ResourceDoesNotExist,
    TortieError,
    UpdateConflict,
)
from tortie.datastore.client import Client
from tortie.datastore.types.cluster import ClusterInformation
from tortie.datastore.types.node import Node
from tortie.ipam import reports
from tortie.ipam.allocator import Allocator
from tortie.ipam.audit import Books, audit
from tortie.ipam.block import ReleaseRequest
from tortie.ipam.handles import handle_key
from tortie.ipam.names import NODE, is_warm
from tortie.ipam.reports import Report


def release(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        if call.flags["from-report"]:
            kubeconfig = call.env.get("KUBECONFIG") or current.kubeconfig
            await _from_reports(call, current.client(), kubeconfig)
            call.out("You may now unlock the data store.\n")
        elif call.flags["ip"]:
            await _address(call, current.client(), call.flags["ip"])
        else:
            raise CommandError("nothing to release: give an address with --ip or a report with --from-report")

    session.run(call, work)


async def _address(call: Call, client: Client, text: str) -> None:
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        raise Refusal(f"Error executing command: invalid IP address specified: {text}") from None
    allocator = Allocator(client)
    if node := await _keeper(client, allocator, address):
        raise CommandError(
            f"IP address {address} is kept ready by node {printable(node)} for its next pods "
            "(calicoctl ipam show --warm); it comes back when TORTIE_WARM_POOL is unset there"
        )
    try:
        outcome = await allocator.release_ips([ReleaseRequest(address)])
        if outcome.error is not None:
            raise outcome.error
    except TortieError as err:
        raise CommandError(f"error: {err}") from err
    if outcome.unallocated:
        raise CommandError(f"IP address {address} is not assigned")
    call.out(f"Successfully released IP address {address}\n")


async def _keeper(client: Client, allocator: Allocator, address: str) -> str:
    """The node, if it exists, that holds an address ready: it may give it to a pod at this very moment."""
    try:
        attribute = await allocator.attributes(address)
        if not is_warm(attribute.handle_id):
            return ""
        return (await client.get(Node, attribute.secondary.get(NODE, ""))).name
    except TortieError:
        return ""  # nobody has it, or the release itself says what is the matter


# --- from reports ---------------------------------------------------------------------------------


async def _from_reports(call: Call, client: Client, kubeconfig: str) -> None:
    cluster = await client.get(ClusterInformation, "default")
    files = {path: _read(path) for path in call.flags["from-report"]}
    for warning in warnings(files, cluster, __version__, force=call.flags["force"]):
        call.out(f"WARNING: {warning}. Ignoring due to --force option\n")
    wanted = reports.common(list(files.values()))
    present = now((await ipambooks.load(client, kubeconfig)).books)
    if wanted.addresses:
        await _release_addresses(call, client, wanted.addresses, present)
    else:
        call.out("Report didn't contain any leaked IPs to clean up.\n")
    if wanted.handles:
        await _delete_handles(call, client, wanted.handles, present.handles)
    else:
        call.out("Report didn't contain any handles to clean up.\n")


def _read(path: str) -> Report:
    try:
        with open(path, "rb") as source:
            return reports.load(source.read(), path)
    except OSError as err:
        raise CommandError(f"open {path}: {(err.strerror or str(err)).lower()}") from err
    except ConfigError as err:
        raise CommandError(f"{path} is no report of calicoctl ipam check: {err.reason}") from err


def warnings(
    files: dict[str, Report], cluster: ClusterInformation, version: str, *, force: bool
) -> Sequence[str]:
    """What `force` lets pass; without it, and for what it cannot, raises CommandError. Pure."""
    found = []
    for path, report in files.items():
        if report.clusterGUID != cluster.spec.clusterGUID:
            raise CommandError(
                f"cluster does not match the provided report ({path}): mismatched cluster GUID. "
                "Refusing to release"
            )
        if report.version != version:
            if not force:
                raise CommandError(
                    f"the provided report ({path}) was produced using a different version "
                    f"({report.version}) of calicoctl. Refusing to release"
                )
            found.append("Report was produced using a different version of calicoctl")
    if not any(report.clusterInformationRevision == cluster.revision for report in files.values()):
        raise CommandError(
            "the provided reports are all stale - at least one should be up-to-date. Please generate a new "
            "report while the data store is locked and try again"
        )
    if not is_locked(cluster):
        if not force:
            raise CommandError("data store is not locked. Either lock the data store, or re-run with --force")
        found.append("Data store is not locked")
    return found


@dataclass(frozen=True, slots=True)
class Now:
    """What is so at this moment: who uses addresses, and what has them."""

    used: Collection[str]
    allocated: Mapping[str, ReleaseRequest]  # address -> its allocation, as a guarded request
    handles: Collection[str]  # those that blocks mention


def now(books: Books) -> Now:
    found = audit(books, 0)
    everything = [one for listed in found.allocations.values() for one in listed]
    return Now(
        used=found.uses.keys(),
        allocated={
            one.address: ReleaseRequest(one.address, one.handle, one.sequence_number)
            for one in everything
            if not one.cooling
        },
        handles={one.handle for one in everything},
    )


def still_leaked(wanted: Sequence[ReleaseRequest], present: Now) -> tuple[list[ReleaseRequest], int, int]:
    """What of a report is to be released, how much of it is gone, and how much is used by now. Pure.

    Releases of one block succeed or fail together: what is known to fail must not be among them.
    """
    there = [request for request in wanted if present.allocated.get(request.address) == request]
    unused = [request for request in there if request.address not in present.used]
    return unused, len(wanted) - len(there), len(there) - len(unused)


async def _release_addresses(
    call: Call, client: Client, wanted: Sequence[ReleaseRequest], present: Now
) -> None:
    requests, gone, used = still_leaked(wanted, present)
    call.out(f"Releasing {len(requests)} old IPs...\n")
    try:
        outcome = await Allocator(client).release_ips(requests)
    except TortieError as err:
        raise CommandError(f"error: {err}") from err
    if outcome.error is not None:
        call.out(
            f"An error occurred while releasing some IPs: {printable(str(outcome.error))}.  Problems are "
            "often caused by an out-of-date IPAM report.  Try regenerating the IPAM report and retry.\n"
        )
    else:
        call.out(f"Released {len(requests) - len(outcome.unallocated)} IPs successfully\n")
    if gone := gone + len(outcome.unallocated):
        call.out(f"{gone} addresses marked as leaked in the report had already been cleaned up.\n")
    if used:
        call.out(f"{used} addresses marked as leaked in the report are in use by now and were kept.\n")


async def _delete_handles(
    call: Call, client: Client, wanted: Mapping[str, str], used: Collection[str]
) -> None:
    call.out(f"Deleting {len(wanted)} handles...\n")
    call.out("Key: '.' = Deleted OK; 'x' = skip, handle missing/changed.\n")
    done = skipped = failed = 0
    for handle, revision in sorted(wanted.items()):
        try:
            if handle in used or not revision:
                raise UpdateConflict(handle)
            await client.backend.delete(handle_key(handle), revision)
        except (ResourceDoesNotExist, UpdateConflict):
            skipped += 1
            call.out("x")
        except TortieError as err:
            failed += 1
            call.out(f"\nDeleting handle {printable(handle)} failed: {printable(str(err))}.\n")
        else:
            done += 1
            call.out(".")
    call.out(f"\nReleased {done} handles; {skipped} skipped; {failed} errors.\n")

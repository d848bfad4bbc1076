"""`ipam show`: how addresses are used.

(Reference: IPAM, section 6.)
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping

from tortie.calicoctl import session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import Refusal, printable
from tortie.calicoctl.gonumber import format_significant
from tortie.calicoctl.session import Session
from tortie.core.errors import ResourceDoesNotExist
from tortie.core.tables import boxed
from tortie.datastore.types.ipam import AllocationAttribute, Block, IPAMConfig
from tortie.ipam import block as blocks
from tortie.ipam import names
from tortie.ipam.allocator import Allocator
from tortie.ipam.utilisation import PoolUsage, Usage

_DIGITS = 5  # significant ones of a count
_NUMBERS = range(2, 6)  # columns of the usage table that are right-aligned


def show(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        allocator = Allocator(current.client())
        flags = call.flags
        if flags["ip"]:
            call.out(await _address(allocator, flags["ip"]))
        elif flags["warm"]:
            call.out(warm(await allocator.blocks()))
        elif flags["show-blocks"] or not (flags["show-borrowed"] or flags["show-configuration"]):
            call.out(usage(await allocator.utilisation(), with_blocks=flags["show-blocks"]))
        elif flags["show-borrowed"]:
            call.out(borrowed(await allocator.blocks()))
        else:
            call.out(configuration(await allocator.get_config()))

    session.run(call, work)


async def _address(allocator: Allocator, text: str) -> str:
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        raise Refusal(f"Error executing command: invalid IP address specified: {text}") from None
    try:
        return assignment(address, await allocator.attributes(address))
    except ResourceDoesNotExist:
        return f"{address} is not assigned\n"


# --- texts, all pure ------------------------------------------------------------------------------


def usage(pools: Iterable[PoolUsage], *, with_blocks: bool) -> str:
    rows = []
    for pool in pools:
        if pool.usage is not None:  # else these are blocks outside any pool
            rows.append(_usage_row("IP Pool", pool.usage))
        if with_blocks:
            rows += [_usage_row("Block", block) for block in pool.blocks]
    heading = ["Grouping", "CIDR", "IPs total", "IPs in use", "IPs reserved", "IPs free"]
    return boxed(heading, rows, right=_NUMBERS)


def _usage_row(grouping: str, found: Usage) -> list[str]:
    def share(number: int) -> str:
        percent = 100 * number / found.total if found.total else 0.0
        return f"{format_significant(number, _DIGITS)} ({percent:.0f}%)"

    total = format_significant(found.total, _DIGITS)
    return [grouping, found.cidr, total, share(found.in_use), share(found.reserved), share(found.free)]


def assignment(address: str, attribute: AllocationAttribute) -> str:
    active = _attributes("Active Owner Attributes", attribute.secondary)
    return (
        f"IP {address} is in use\n"
        f"Handle ID: {printable(attribute.handle_id) if attribute.handle_id else '<none>'}\n"
        f"{active or 'No Active Owner attributes defined' + chr(10)}"
        f"{_attributes('Alternate Owner Attributes', attribute.alternateOwnerAttrs)}"
    )


def _attributes(title: str, attributes: Mapping[str, str]) -> str:
    lines = [f"  {printable(key)}: {printable(attributes[key])}\n" for key in sorted(attributes)]
    return f"{title}:\n" + "".join(lines) if lines else ""


def borrowed(stored: Iterable[Block]) -> str:
    """Addresses that a node uses out of another's block, or out of one that is nobody's."""
    rows, unknown = [], 0
    for block in stored:
        owner = (block.affinity or "").rpartition(":")[2]
        for ordinal in range(len(block.allocations)):
            attribute = blocks.attribute_at(block, ordinal)
            if attribute is None or attribute.releasedAt is not None:
                continue
            node = attribute.secondary.get(names.NODE)
            if node is None:
                unknown += 1
            elif node != owner:
                rows.append([blocks.address_at(block, ordinal), node, block.cidr, owner, *_user(attribute)])
    heading = ["IP", "Borrowing-node", "Block", "Block owner", "Type", "Allocated-to"]
    note = (
        f"\nNote: found {unknown} IP allocations without an explicit node association. "
        "Unable to determine if they are borrowed.\n"
    )
    return boxed(heading, [[printable(cell) for cell in row] for row in rows]) + (note if unknown else "")


def _user(attribute: AllocationAttribute) -> tuple[str, str]:
    """What kind of user has an address, and its name."""
    given = attribute.secondary
    namespace = given.get(names.NAMESPACE, "")
    if names.VMI_NAME in given:
        return "vmi", f"{namespace}/{given[names.VMI_NAME]}"
    if names.POD in given:
        return "pod", f"{namespace}/{given[names.POD]}"
    return given.get(names.TYPE, ""), ""


def warm(stored: Iterable[Block]) -> str:
    """Addresses that nodes keep ready for their next pods, by node and marks."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for block in stored:
        for index in block.allocations:
            attribute = block.attributes[index] if index is not None else None
            if attribute is not None and names.is_warm(attribute.handle_id):
                given = attribute.secondary
                version = "IPv6" if ":" in block.cidr else "IPv4"
                counts[given.get(names.NODE, ""), version, given.get(names.NOTE, "")] += 1
    rows = [[node, version, str(counts[node, version, note]), note] for node, version, note in sorted(counts)]
    heading = ["Node", "Version", "IPs ready", "Marks"]
    return boxed(heading, [[printable(cell) for cell in row] for row in rows], right=(2,))


def configuration(config: IPAMConfig) -> str:
    rows = [
        ["StrictAffinity", _word(config.strict_affinity)],
        ["AutoAllocateBlocks", _word(config.auto_allocate_blocks)],
        ["MaxBlocksPerHost", str(config.maxBlocksPerHost)],
        ["KubeVirtVMAddressPersistence", config.kubeVirtVMAddressPersistence or "<nil>"],
        ["IPCooldownSeconds", str(config.ipCooldownSeconds)],
    ]
    return boxed(["Property", "Value"], [[cell, printable(value)] for cell, value in rows])


def _word(value: bool) -> str:
    return "true" if value else "false"

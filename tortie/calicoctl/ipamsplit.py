"""`ipam split`: one pool into several of equal size, while its addresses stay where they are.

Blocks are not touched: each lies in exactly one of the new pools, because a part is never smaller than
a block. Every step may be repeated: an interrupted split is finished by the same command.
(Reference: IPAM, section 6.)
"""

import ipaddress

from msgspec import structs

from tortie.calicoctl import clusterlock, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.session import Session
from tortie.core.errors import DatastoreError, ResourceAlreadyExists, ResourceDoesNotExist
from tortie.datastore.client import Client
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.ippool import IPPool

_LONGEST_NAME, _CUT = 253, 245  # Calico's: leaves room for `split-` and two digits


def split(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        try:
            parts = int(call.words[0])
        except ValueError:
            raise CommandError(
                f"error reading number to split IP pools into. {call.words[0]} is not a valid number: "
                f'strconv.Atoi: parsing "{call.words[0]}": invalid syntax'
            ) from None
        name, cidr = call.flags["name"], call.flags["cidr"]
        if not name and not cidr:
            raise CommandError(
                "no name or CIDR provided. Provide a name or CIDR to denote the IP pool to split"
            )
        client = current.client()
        await clusterlock.require(client, "split the IP pools")
        old = await _find(client, name, cidr)
        made = pools(old, parts)
        await carry_out(client, old, made)
        call.out(f"IP Pool {printable(old.name)} was successfully split into {parts} smaller pools.\n")
        for pool in made:
            call.out(f"Created {printable(pool.name)} with CIDR {pool.spec.cidr}.\n")
        call.out("Please refer to the documentation for final steps.\n")

    session.run(call, work)


async def _find(client: Client, name: str, cidr: str) -> IPPool:
    if name:
        try:
            return await client.get(IPPool, name)
        except DatastoreError as err:
            raise CommandError(f"unable to find IP pool with name {name}: {err}") from err
    for pool in (await client.list(IPPool)).items:
        if pool.spec.cidr == cidr:
            return pool
    raise CommandError(f"unable to find IP pool {name} covering the specified CIDR {cidr}")


# --- what the new pools are, pure -----------------------------------------------------------------


def pools(old: IPPool, parts: int) -> list[IPPool]:
    """The pools that take the place of `old`. Raises CommandError."""
    made = []
    for index, cidr in enumerate(cidrs(old.spec.cidr, old.spec.blockSize, parts)):
        name = f"split-{old.name}-{index}"
        if len(name) > _LONGEST_NAME:
            name = f"split-{old.name[:_CUT]}-{index}"
        pool = old.with_metadata(
            name=name, uid="", resourceVersion="", generation=0, creationTimestamp=None, generateName=""
        )
        made.append(structs.replace(pool, spec=structs.replace(old.spec, cidr=cidr, disabled=False)))
    return made


def cidrs(cidr: str, block_size: int, parts: int) -> list[str]:
    """`parts` networks of equal size, each of at least one block. Raises CommandError."""
    failed = f"error splitting the CIDR {cidr} into {parts} CIDRs"
    if parts < 2 or parts & (parts - 1):
        raise CommandError(f"{failed}: number to split CIDR into is not a valid power of 2: {parts}")
    try:
        net = ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        raise CommandError(f"{failed}: error reading CIDR {cidr} before attempting to split it") from None
    longer = parts.bit_length() - 1
    if net.prefixlen + longer > (block_size or net.max_prefixlen):
        raise CommandError(f"{failed}: the CIDR {cidr} is not large enough to be split into {parts} parts")
    return [str(part) for part in net.subnets(prefixlen_diff=longer)]


# --- doing it -------------------------------------------------------------------------------------


async def carry_out(client: Client, old: IPPool, made: list[IPPool]) -> None:
    """Disable, create, delete. The rules against overlapping pools are passed by: that is the point."""
    try:
        await client.update(structs.replace(old, spec=structs.replace(old.spec, disabled=True)))
    except DatastoreError as err:
        raise CommandError(f"error disabling IP pool {old.name}: {err}") from err
    for pool in made:
        try:
            await _create(client, pool)
        except DatastoreError as err:
            raise CommandError(
                f"error using unsafe create to make split pool with cidr {pool.spec.cidr}: {err}"
            ) from err
    try:
        await client.backend.delete(ResourceKey(IPPool.KIND, old.name))
    except ResourceDoesNotExist:
        return
    except DatastoreError as err:
        raise CommandError(f"error removing the IP pool that was split {old.name}: {err}") from err


async def _create(client: Client, pool: IPPool) -> None:
    try:
        await client.unsafe_create(pool)
    except ResourceAlreadyExists:
        # Of an earlier, interrupted run of this command; anything else of this name is in the way.
        if (await client.get(IPPool, pool.name)).spec.cidr != pool.spec.cidr:
            raise

"""`ipam configure`: the cluster's settings of IPAM. (Reference: IPAM, 1.7 and section 6.)"""

from collections.abc import Mapping
from typing import Any

from msgspec import structs

from tortie.calicoctl import session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.session import Session
from tortie.core.errors import TortieError, UpdateConflict
from tortie.ipam.allocator import Allocator

_UNSET = -1  # of --ip-cooldown-seconds
_TRIES = 5  # two people configuring at once is rare; more than a few times is a script gone wild

_TRUE = {"1", "t", "T", "TRUE", "true", "True"}  # Go's strconv.ParseBool
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}


def configure(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        client = current.client()
        changes = settings(call.flags)
        try:
            await _change(Allocator(client), changes)
        except TortieError as err:
            raise CommandError(f"error: {err}") from err
        for field, value in changes.items():
            shown = str(value).lower() if isinstance(value, bool) else value
            call.out(f"Successfully set {_NAMES[field]} to: {shown}\n")

    session.run(call, work)


async def _change(allocator: Allocator, changes: Mapping[str, Any]) -> None:
    for _ in range(_TRIES - 1):
        try:
            await allocator.set_config(structs.replace(await allocator.get_config(), **changes))
            return
        except UpdateConflict:
            continue
    await allocator.set_config(structs.replace(await allocator.get_config(), **changes))


_NAMES = {  # field of the configuration -> what Calico calls it
    "strict_affinity": "StrictAffinity",
    "maxBlocksPerHost": "MaxBlocksPerHost",
    "kubeVirtVMAddressPersistence": "KubeVirtVMAddressPersistence",
    "ipCooldownSeconds": "IPCooldownSeconds",
}


def settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> its new value, of the flags that were given. Raises CommandError. Pure."""
    changes: dict[str, Any] = {}
    if strict := flags["strictaffinity"]:
        if strict not in _TRUE | _FALSE:
            raise CommandError("invalid value. Use true or false to set strictaffinity")
        changes["strict_affinity"] = strict in _TRUE
    if most := flags["max-blocks-per-host"]:
        try:
            changes["maxBlocksPerHost"] = int(most)
        except ValueError:
            raise CommandError("invalid value for maxblockhost. Use a valid number") from None
    if persistence := flags["kubevirt-ip-persistence"]:
        if persistence not in ("Enabled", "Disabled"):
            raise CommandError("invalid value for --kubevirt-ip-persistence. Use Enabled or Disabled")
        changes["kubeVirtVMAddressPersistence"] = persistence
    if flags["ip-cooldown-seconds"] > _UNSET:
        changes["ipCooldownSeconds"] = flags["ip-cooldown-seconds"]
    if not changes:
        raise CommandError("at least one configuration option must be specified")
    return changes

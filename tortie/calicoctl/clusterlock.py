"""Whether the datastore is locked: while it is, CNI refuses work and nothing collects addresses."""

from msgspec import structs

from tortie.calicoctl.errors import CommandError
from tortie.core.errors import DatastoreError
from tortie.datastore import initialize
from tortie.datastore.client import Client
from tortie.datastore.types.cluster import ClusterInformation

LOCK_COMMAND = "`calicoctl datastore migrate lock`"


async def require(client: Client, purpose: str) -> None:
    """Raises CommandError unless the datastore is locked; `purpose` ends the advice."""
    try:
        locked = is_locked(await client.get(ClusterInformation, "default"))
    except DatastoreError as err:
        raise CommandError(
            f"error while checking if datastore was locked: error retrieving ClusterInformation: {err}"
        ) from err
    if not locked:
        raise CommandError(f"datastore is not locked. Run the {LOCK_COMMAND} command in order {purpose}")


def is_locked(cluster: ClusterInformation) -> bool:
    """Unset is open, as for CNI of a cluster older than the setting."""
    return cluster.spec.datastoreReady is False


async def put_for_migration(client: Client) -> None:
    """Lock, also a datastore that nobody has used before. Raises CommandError."""
    try:
        await initialize.ensure_initialized(client, "", "")
    except DatastoreError as err:
        raise CommandError(
            f"unable to initialize cluster information for the datastore migration: {err}"
        ) from err
    await put(client, locked=True)


async def put(client: Client, *, locked: bool) -> None:
    """Lock or unlock. Raises CommandError."""
    doing = "locking" if locked else "unlocking"
    try:
        cluster = await client.get(ClusterInformation, "default")
    except DatastoreError as err:
        raise CommandError(f"error retrieving ClusterInformation for {doing}: {err}") from err
    spec = structs.replace(cluster.spec, datastoreReady=not locked)
    try:
        await client.update(structs.replace(cluster, spec=spec))
    except DatastoreError as err:
        raise CommandError(f"error updating ClusterInformation for {doing}: {err}") from err

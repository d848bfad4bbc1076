"""`datastore migrate lock|unlock` and `datastore migrate-policy-names`. (Reference: CLI, 3.6.)"""

from tortie.calicoctl import clusterlock, session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError
from tortie.calicoctl.session import Session
from tortie.core.errors import ResourceAlreadyExists, TortieError
from tortie.datastore import rules
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.keys import ResourceKey, ResourceList, key_of
from tortie.datastore.types.meta import Resource

_POLICIES = (
    "NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy",
)  # fmt: skip


def lock(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        client = current.client()
        await clusterlock.put_for_migration(client)
        call.out("Datastore locked.\n")

    session.run(call, work)


def unlock(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        await clusterlock.put(current.client(), locked=False)
        call.out("Datastore unlocked.\n")

    session.run(call, work)


def policy_names(call: Call) -> None:
    async def work(current: Session) -> None:
        await current.check_version()
        client = current.client()
        migrated = 0
        for kind in _POLICIES:
            listed = await client.backend.list(ResourceList(kind))
            for broken in listed.broken:
                call.err(f"Warning: {broken.where} cannot be read: {broken.error}")
            for kv in listed.items:
                migrated += await _migrated(client, kv)
        call.out(f"Policy name migration complete, migrated {migrated} policies.\n")

    session.run(call, work)


async def _migrated(client: Client, kv: KV) -> bool:
    """Store one policy under the name that readers see, if it is not; first the new one, then away with
    the old, so that the policy holds all the time.

    Raises CommandError if another policy of that name exists.
    """
    policy: Resource = rules.as_read(kv.value)
    key = key_of(policy)
    if not isinstance(kv.key, ResourceKey) or key == kv.key:
        return False
    try:
        await client.backend.create(key, rules.with_name_annotation(policy.with_metadata(resourceVersion="")))
    except ResourceAlreadyExists:
        other: Resource = (await client.backend.get(key)).value
        # Ours of an interrupted run keeps the UID of the old one; anything else is a person's to judge.
        if other.metadata.uid != policy.metadata.uid:
            raise CommandError(
                f"{kv.key} cannot be migrated: {key} exists already, and is another policy"
            ) from None
    try:
        await client.backend.delete(kv.key, kv.revision)
    except TortieError as err:
        raise CommandError(f"{kv.key} was copied to {key} but could not be deleted: {err}") from err
    return True

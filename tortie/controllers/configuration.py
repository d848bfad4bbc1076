"""KubeControllersConfiguration: followed, created where there is none, and told what is in force."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import structs

from tortie.controllers.settings import NAME, Settings, default_configuration, resolve
from tortie.core.errors import ResourceAlreadyExists, ResourceDoesNotExist, UpdateConflict
from tortie.datastore.client import Client
from tortie.datastore.keys import ResourceKey, ResourceList
from tortie.datastore.syncer import Syncer, SyncStatus
from tortie.datastore.types.cluster import KubeControllersConfiguration
from tortie.datastore.validate import check_stored, with_defaults

_log = logging.getLogger(__name__)

_KEY = ResourceKey(KubeControllersConfiguration.KIND, NAME)


async def settings(client: Client, env: Mapping[str, str], datastore: str) -> AsyncGenerator[Settings, None]:
    """The settings in force, and again each time they change. Raises ConfigError for a wrong variable.

    A resource that is invalid counts as none: what was in force stays so.
    """
    follow = Syncer(
        client.backend, [ResourceList(KubeControllersConfiguration.KIND, name=NAME)], check=check_stored
    )
    stored: KubeControllersConfiguration | None = None
    now: Settings | None = None
    # What was told -> what was kept of it: an API server drops what an older definition does not know,
    # and to tell it that again would never end.
    kept: dict[bytes, dict[str, Any]] = {}
    async with aclosing(follow.batches()) as batches:
        async for batch in batches:
            for update in batch.updates:
                if update.key == _KEY:
                    stored = update.value
            if batch.status is not SyncStatus.IN_SYNC:
                continue
            if stored is None:
                await _create(client)
                continue
            found, status = resolve(env, with_defaults(stored).spec, datastore)
            if stored.status not in (status, kept.get(_text(status))):
                stored = await _tell(client, structs.replace(stored, status=status))
                kept = {_text(status): stored.status}
            if found != now:
                now = found
                yield now


def _text(status: dict[str, Any]) -> bytes:
    return msgspec.json.encode(status, order="sorted")


async def _create(client: Client) -> None:
    try:
        await client.create(default_configuration())
    except ResourceAlreadyExists as err:
        # Another was faster, or it is invalid: the syncer has said so, or tells it in a moment.
        _log.debug("%s is there: %s", _KEY, err)


async def _tell(client: Client, stored: KubeControllersConfiguration) -> KubeControllersConfiguration:
    """With its new status; if somebody was faster, the next change of it is told anyway."""
    try:
        return await client.update(stored)
    except (UpdateConflict, ResourceDoesNotExist) as err:
        _log.debug("%s changed meanwhile: %s", _KEY, err)
        return stored

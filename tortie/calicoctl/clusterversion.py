"""The part of `version` that asks the cluster, once or again and again."""

import asyncio

from tortie.calicoctl import session
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable
from tortie.calicoctl.session import Session
from tortie.core.errors import DatastoreError
from tortie.datastore.client import Client
from tortie.datastore.types.cluster import ClusterInformation


def show(call: Call, interval: float) -> None:
    """Every `interval` seconds what has changed; once if that is 0."""

    async def work(current: Session) -> None:
        if current.problem:
            call.out("Unable to detect installed Calico version\n")
        elif interval:
            await _poll(call, current.client(), interval)
        else:
            try:
                call.out(_text(await _seen(current.client())))
            except DatastoreError as err:
                raise CommandError(_failure(err)) from err

    session.run(call, work)


async def _poll(call: Call, client: Client, interval: float) -> None:
    shown: dict[str, str] = {}
    while True:
        try:
            now = await _seen(client)
            call.out(_text({line: value for line, value in now.items() if shown.get(line) != value}))
            call.stdout.flush()
            shown = now
        except DatastoreError as err:
            call.err(_failure(err))
            shown = {}  # what is seen after a gap is worth printing again
        await asyncio.sleep(interval)


async def _seen(client: Client) -> dict[str, str]:
    """The beginning of each line -> its value."""
    cluster = (await client.get(ClusterInformation, "default")).spec
    return {
        "Cluster Version:   ": cluster.calicoVersion or "unknown",
        "Cluster Type:      ": cluster.clusterType or "unknown",
    }


def _text(lines: dict[str, str]) -> str:
    return "".join(f"{line}{printable(value)}\n" for line, value in lines.items())


def _failure(err: DatastoreError) -> str:
    return f"unable to retrieve Cluster Version or Type: {err}"

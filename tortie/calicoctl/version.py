"""`version`: this program's version, and the cluster's."""

import asyncio

from tortie import __version__
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError, printable


def version(call: Call) -> None:
    interval = _interval(call.flags["poll"])
    call.out(f"Client Version:    {__version__}\nGit commit:        {_commit()}\n")
    if call.flags["client"]:
        return
    from tortie.calicoctl import session  # what --client does not need

    async def work(current: session.Session) -> None:
        if current.problem:
            call.out("Unable to detect installed Calico version\n")
            return
        await _cluster(call, current, interval)

    session.run(call, work)


def _interval(text: str) -> float:
    """Seconds; 0: ask once."""
    if not text:
        return 0
    from tortie.core.duration import parse_duration

    try:
        return parse_duration(text)
    except ValueError:
        raise CommandError(f"invalid poll duration specified: {text}") from None


def _commit() -> str:
    """The commit this was built from, which a packager may write beside the version."""
    import tortie

    return getattr(tortie, "__commit__", "unknown")


async def _cluster(call: Call, current: "object", interval: float) -> None:
    from tortie.calicoctl.session import Session
    from tortie.core.errors import DatastoreError
    from tortie.datastore.types.cluster import ClusterInformation

    assert isinstance(current, Session)
    shown: dict[str, str] = {}  # line -> its value when it was last printed
    while True:
        try:
            cluster = await current.client().get(ClusterInformation, "default")
            now = {
                "Cluster Version:   ": cluster.spec.calicoVersion or "unknown",
                "Cluster Type:      ": cluster.spec.clusterType or "unknown",
            }
            for line, value in now.items():
                if shown.get(line) != value:
                    call.out(f"{line}{printable(value)}\n")
            shown = now
            problem = None
        except DatastoreError as err:
            shown = {}  # what is seen after a gap is printed again
            problem = CommandError(f"unable to retrieve Cluster Version or Type: {err}")
        if not interval:
            break
        if problem is not None:
            call.err(str(problem))
        call.stdout.flush()
        await asyncio.sleep(interval)
    if problem is not None:
        raise problem

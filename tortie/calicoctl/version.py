"""`version`: this program's version, and the cluster's."""

import tortie
from tortie.calicoctl.call import Call
from tortie.calicoctl.errors import CommandError


def version(call: Call) -> None:
    interval = _interval(call.flags["poll"])
    # A packager may write the commit beside the version.
    commit = getattr(tortie, "__commit__", "unknown")
    call.out(f"Client Version:    {tortie.__version__}\nGit commit:        {commit}\n")
    if not call.flags["client"]:
        from tortie.calicoctl import clusterversion  # and with it the datastore, which --client spares

        clusterversion.show(call, interval)


def _interval(text: str) -> float:
    """Seconds; 0: ask once."""
    if not text:
        return 0
    from tortie.core.duration import parse_duration

    try:
        return parse_duration(text)
    except ValueError:
        raise CommandError(f"invalid poll duration specified: {text}") from None

"""Times as Go writes them into IPAM's objects. All moments are Unix time in nanoseconds."""

import time
from datetime import datetime

_SECOND = 1_000_000_000


def rfc3339(ns: int) -> str:
    """Whole seconds, UTC: how Kubernetes' metav1.Time is written."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // _SECOND))


def parse(text: str) -> int:
    """An RFC 3339 time of any zone and precision. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    # Through whole seconds: a float holds today's nanoseconds only to about 200.
    return int(moment.replace(microsecond=0).timestamp()) * _SECOND + moment.microsecond * 1000


def plain(ns: int) -> str:
    """As Go prints a UTC time: the form of the `timestamp` attribute."""
    seconds, fraction = divmod(ns, _SECOND)
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    tail = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{text}{tail} +0000 UTC"

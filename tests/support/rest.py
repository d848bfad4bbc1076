"""Waiting until something changes no more."""

import time
from collections.abc import Callable
from typing import TypeVar

from tortie.lab.cluster import wait_until

T = TypeVar("T")


def at_rest(
    read: Callable[[], T],
    what: str,
    patience: float,
    *,
    looks: int = 1,
    seconds: float = 0.0,
    able: Callable[[T], bool] = lambda _: True,
) -> T:
    """What `read()` gives, once so many more looks, over so many seconds at least, have shown the same.

    `able`: whether what was seen can be at rest.
    """
    seen, since, same = read(), time.monotonic(), 0

    def still() -> bool:
        nonlocal seen, since, same
        now = read()
        if now == seen and able(now):
            same += 1
        else:
            seen, since, same = now, time.monotonic(), 0
        return same >= looks and time.monotonic() - since >= seconds

    wait_until(still, f"{what} to come to rest", patience)
    return seen

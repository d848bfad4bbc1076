"""When felix looks for garbage: what is read and rendered at the start stays for good, and it is much.

Python looks through young objects after every 700 new ones, and through all of them as these add up: a fifth
of the time of a start in a big cluster, and later a pause in which no change is made. (CPython, gcmodule.c.)
"""

import gc

_AT_START = 100_000  # new objects until it is worth a look: some 10 MB, if all of them were garbage
_USUAL = gc.get_threshold()


def start() -> None:
    """Much comes, little of it goes."""
    gc.set_threshold(_AT_START)


def settled() -> None:
    """What is there now is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_USUAL)

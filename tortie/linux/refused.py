"""Refused chains: where there are many, good ones are closed with them, and opened in small transactions."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

Key = tuple[str, str]  # of a chain, as the dataplane names it
MAX_REPLACED = 16  # refusals that each cost a run of the whole transaction; then it goes on without
_AT_ONCE = 64  # chains opened in one transaction: what a refusal among them costs stays small
_UNTRIED = "too many chains are refused to try this one"

Write = Callable[[Sequence[Key]], Awaitable[Mapping[Key, str]]]


def close(keys: Iterable[Key], replaced: dict[Key, str]) -> None:
    """Add chains to those that are replaced by one that drops everything, though nobody refused them."""
    replaced.update(dict.fromkeys(keys, _UNTRIED))


async def open_again(closed: Sequence[Key], replaced: dict[Key, str], write: Write) -> None:
    """Write what close() was told of; `replaced` is left with what is refused.

    `write` makes one transaction of the chains and returns the reasons of those that were refused, {} if
    all are written.
    """
    for start in range(0, len(closed), _AT_ONCE):
        keys = closed[start : start + _AT_ONCE]
        while keys and (refused := await write(keys)):
            replaced.update(refused)
            keys = [key for key in keys if key not in refused]
        for key in keys:
            del replaced[key]

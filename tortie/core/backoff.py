"""Exponential back-off with jitter, as a plain value: time and randomness come from the caller."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds: `first`, then `factor` times the last, never above `cap`.

    Each delay is spread by ±`jitter` (a fraction) so that a hundred nodes which lost the same
    datastore do not return in the same millisecond.
    """

    first: float = 0.25
    cap: float = 30.0
    factor: float = 2.0
    jitter: float = 0.2

    def delay(self, failures: int, rand: Callable[[], float]) -> float:
        """The wait before the next try after `failures` (≥ 1) failures in a row; rand() is in [0, 1)."""
        exponent = min(failures - 1, 32)  # 2^32 × first is above any cap; avoids overflow after years
        plain = min(self.cap, self.first * self.factor**exponent)
        return plain * (1 + self.jitter * (2 * rand() - 1))


class Retry:
    """A counter over a Backoff, for loops: `wait()` after each failure, `reset()` on success."""

    def __init__(self, policy: Backoff, rand: Callable[[], float] | None = None) -> None:
        self._policy = policy
        self._rand = rand or Random().random
        self.failures = 0

    def wait(self) -> float:
        self.failures += 1
        return self._policy.delay(self.failures, self._rand)

    def reset(self) -> None:
        self.failures = 0

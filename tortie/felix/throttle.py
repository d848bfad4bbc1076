"""A token bucket: the first few passes go at once, a flood of changes is gathered into ten a second.

Pure; the clock is the caller's. (Reference: dataplane sheet 2.5; Calico's numbers.)
"""

_BURST = 10.0
_PER_SECOND = 10.0


class Throttle:
    def __init__(self, now: float) -> None:
        self._tokens = _BURST
        self._at = now

    def wait(self, now: float) -> float:
        """Take a token; the seconds to wait before acting on it."""
        self._tokens = min(_BURST, self._tokens + (now - self._at) * _PER_SECOND) - 1
        self._at = now
        return max(0.0, -self._tokens / _PER_SECOND)

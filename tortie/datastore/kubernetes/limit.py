"""How fast this client may ask: a token bucket, as plain arithmetic over a clock."""


class Bucket:
    """`rate` tokens a second come in, at most `burst` are kept; each request takes one.

    Tokens may be taken ahead of time: who takes one that is not there yet is told how long to wait for
    it, and those who come later wait longer, so nobody is overtaken.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, max(1, burst)
        self._tokens = float(self._burst)
        self._last = 0.0  # the clock's reading at the last take

    def take(self, now: float) -> float:
        """Seconds to wait before the request may go out; `now` is a monotonic clock's reading."""
        self._tokens = min(float(self._burst), self._tokens + max(0.0, now - self._last) * self._rate)
        self._last = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

"""The first numbers of Go's math/rand (version 1) for a seed, and Go's draw of a big integer from them.

Calico seeds that generator with its host name to choose where in a pool a host starts to look for a
block. Drawing the same number matters where both run on one host, during a migration or roll-back: both
then claim the same block and not one each.

The generator is an additive lagged Fibonacci sequence, s[n] = s[n-607] + s[n-273] modulo 2^64. Its
state is seeded from a Lehmer sequence XORed with a constant table, which is itself the state of the
same generator, seeded with 1, after 7.8e12 steps (src/math/rand/gen_cooked.go). Instead of carrying
607 numbers we jump there: s[n] is the linear combination of s[0..606] whose coefficients are those of
x^n modulo x^607 - x^334 - 1. That takes some 50 ms, once, in the process that first claims a block.
"""

from collections.abc import Iterator
from functools import cache

_LENGTH, _LAG = 607, 273
_WORD = 2**64 - 1
_COOKING_STEPS = 7_800_000_000_000
_LEHMER, _MODULUS = 48271, 2**31 - 1
_ZERO_SEED = 89482311  # what Go puts for a seed that is 0 modulo the modulus
_SLOT = 18  # bytes per coefficient in a packed polynomial: 607 products of 128 bits need 138 bits


def draw_below(limit: int, seed: int) -> int:
    """Go's `new(big.Int).Rand(rand.New(rand.NewSource(seed)), limit)`: uniform in [0, limit)."""
    bits = limit.bit_length()
    numbers = _uint32s(seed)
    while True:  # each try succeeds with a chance above one half
        drawn = 0
        for word in range(-(-bits // 64)):
            drawn |= (next(numbers) | next(numbers) << 32) << (64 * word)
        drawn &= (1 << bits) - 1
        if drawn < limit:
            return drawn


def _uint32s(seed: int) -> Iterator[int]:
    """Go's rand.Uint32: the upper half of 63-bit numbers."""
    state = [mixed ^ cooked for mixed, cooked in zip(_seeded(seed, 40, 20), _cooked(), strict=True)]
    while True:
        number = (state[0] + state[_LENGTH - _LAG]) & _WORD
        state = [*state[1:], number]
        yield (number >> 31) & 0xFFFFFFFF


def _seeded(seed: int, high: int, middle: int) -> list[int]:
    """The state from three Lehmer numbers per word, oldest word first.

    Go keeps the words in a ring and walks it downwards from index 333; this is the order of that walk.
    """
    number = seed % _MODULUS or _ZERO_SEED
    lehmer = []
    for _ in range(20 + 3 * _LENGTH):  # the first 20 are thrown away
        number = number * _LEHMER % _MODULUS
        lehmer.append(number)
    ring = [
        lehmer[i] << high ^ lehmer[i + 1] << middle ^ lehmer[i + 2] for i in range(20, 20 + 3 * _LENGTH, 3)
    ]
    start = _LENGTH - _LAG - 1
    return ring[start::-1] + ring[:start:-1]


@cache
def _cooked() -> list[int]:
    """Go's constant table, in the order of _seeded."""
    # The ring has turned: the oldest word then is not at index 333, but the table is read by index.
    turned = _COOKING_STEPS % _LENGTH
    known = _seeded(1, 20, 10)
    for _ in range(_LENGTH):
        known.append((known[-_LENGTH] + known[-_LAG]) & _WORD)
    factors = _power_of_x(_COOKING_STEPS)
    state = [sum(f * s for f, s in zip(factors, known[k:], strict=False)) & _WORD for k in range(_LENGTH)]
    return state[_LENGTH - turned :] + state[: _LENGTH - turned]


def _power_of_x(exponent: int) -> list[int]:
    """x^exponent modulo x^607 - x^334 - 1, coefficients modulo 2^64, lowest first."""
    result = [1] + [0] * (_LENGTH - 1)
    for bit in f"{exponent:b}":
        result = _reduced(_squared(result))
        if bit == "1":
            result = _reduced([0, *result])
    return result


def _squared(polynomial: list[int]) -> list[int]:
    """Kronecker's trick: one multiplication of big integers is all the products of coefficients."""
    packed = int.from_bytes(b"".join(c.to_bytes(_SLOT, "little") for c in polynomial), "little")
    data = (packed * packed).to_bytes(2 * _LENGTH * _SLOT, "little")
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), _SLOT)]


def _reduced(polynomial: list[int]) -> list[int]:
    for power in range(len(polynomial) - 1, _LENGTH - 1, -1):  # x^607 = x^334 + 1
        factor = polynomial[power]
        for lower in (power - _LENGTH, power - _LAG):
            polynomial[lower] = (polynomial[lower] + factor) & _WORD
    return polynomial[:_LENGTH]

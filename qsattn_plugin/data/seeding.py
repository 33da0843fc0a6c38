"""One seed for each purpose, mixed from integers: no random state to keep, to save or to share between ranks."""

from __future__ import annotations

__all__ = ["derive_seed"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _splitmix64(state: int) -> int:
    """One output of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) for ``state``, both in [0, 2**64)."""
    z = (state + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def derive_seed(*values: int) -> int:
    """Mix integers into one that looks random, in [0, 2**63): fit for ``torch.Generator.manual_seed``.

    The order of the values and how many there are matter; neighbouring values give unrelated results. The same on every
    machine and for every version of Python and torch.

    Args:
        values: any integers; they count modulo 2**64.

    >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
    (True, False)
    """
    state = 0
    for value in values:
        state = _splitmix64(state ^ (value & _MASK))
    return state >> 1

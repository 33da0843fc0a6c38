"""Seeds derived from integers, one for each purpose: no random state to keep, to save or to share between ranks."""

from __future__ import annotations

__all__ = ["derive_seed"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _splitmix64(state: int) -> int:
    """Return the output of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) for ``state``, both in [0, 2**64)."""
    z = (state + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def derive_seed(*values: int) -> int:
    """Hash integers into a seed in [0, 2**63), for ``torch.Generator.manual_seed``.

    The order and the number of the values, which are taken modulo 2**64, matter; neighbouring values give unrelated
    seeds. The result is the same on every machine and with every version of Python and torch.

    >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
    (True, False)
    """
    state = 0
    for value in values:
        state = _splitmix64(state ^ (value & _MASK))
    return state >> 1

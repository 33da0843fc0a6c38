"""A function over many items on several threads, in order; decoding pictures releases Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["threaded_map"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def threaded_map(function: Callable[[_In], _Out], items: Iterable[_In], threads: int | None = None) -> Generator[_Out]:
    """Yield ``function(item)`` for every item, in order; only a few calls run ahead of the consumer.

    >>> from qsattn_plugin.data.parallel import threaded_map
    >>> list(threaded_map(abs, [-1, 2, -3]))
    [1, 2, 3]

    Items are read as needed. Without a number of threads there is one per core, at most 8.
    """
    threads = threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error, calls that have not started are cancelled
            for future in waiting:
                future.cancel()

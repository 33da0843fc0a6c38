"""Cases that nobody wrote down: damaged and hostile input of six kinds, made from a seed.

    python -m tests.fuzz --cases 50000          # `make fuzz`; the seed is printed

A case is made by a function of a random generator and a folder, and tried by calling what that returns. Done, or
refused by a ``UserError`` in words: either is right. Any other exception is a finding, and so are five seconds of the
processor (a minute of the clock) or two gigabytes.
"""

from __future__ import annotations

import importlib
import random
import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import BUILTIN

Case = Callable[[], object]
Make = Callable[[random.Random, Path], Case]

SECONDS, KILOBYTES = 5.0, 2 << 20

#: How the cases ended, so far.
outcomes: Counter[str] = Counter()

#: What no key expects.
ODD: tuple[Any, ...] = (
    *(-1, 0, 1, 3, 1.5, 10**9, 10**30, -(10**400), 1e308, float("nan"), float("inf"), True, False, None),
    *("", "x", "instance", "0", "../../etc", "\x1b[2J", "\u202egnp", "a\nb", "\udcff", "n" * 300, "{", "[[["),
    *([], [1], [[]], ["x", None], {}, {"type": 3}, {"type": "patchgan"}, {"a": {"b": [1]}}),
)


class TooLong(BaseException):
    """A case took more than its time; no handler of errors catches it."""


def odd(draw: random.Random) -> Any:
    """Return a value that is not expected; now and then one that is nested deeply."""
    if draw.random() < 0.03:
        value: Any = 1
        for _ in range(draw.choice((70, 5000))):
            value = [value] if draw.random() < 0.5 else {"a": value}
        return value
    return draw.choice(ODD)


def places(value: Any, most: int = 5) -> Iterator[tuple[Any, Any]]:
    """Yield every container in plain data with each of its keys or indices."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        if most:
            yield from places(value[key], most - 1)


def meddle(draw: random.Random, document: Any) -> None:
    """Change one to three values of plain data in place: replaced, removed, or added."""
    for _ in range(draw.randint(1, 3)):
        found = list(places(document))
        if not found:
            return
        holder, key = draw.choice(found)
        if draw.random() < 0.25:
            del holder[key]
        elif draw.random() < 0.1 and isinstance(holder, dict):
            holder[draw.choice(("x", "", "type", "step", "\x1b[31m"))] = odd(draw)
        else:
            holder[key] = odd(draw)


def damage(draw: random.Random, content: bytes) -> bytes:
    """Return bytes with some of them flipped, cut off, overwritten, repeated or moved."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, end = draw.randrange(len(found) + 1), draw.randrange(min(len(found), 64) + 1)
        match draw.randrange(7):
            case 0 | 1 if found:
                found[at % len(found)] ^= 1 << draw.randrange(8)
            case 2 if found:
                found[end % len(found)] = draw.choice((0, 1, 127, 128, 255))  # in the header
            case 3:
                del found[at:]
            case 4:
                found[at : at + end] = draw.randbytes(end)
            case 5:
                found[at:at] = found[: draw.randrange(1, 200)]
            case _:
                del found[at : at + end]
    return bytes(found)


def cases(make: Make, seed: int | str, count: int, folder: Path) -> Iterator[str]:
    """Make and try so many cases of a kind; yield a text for each finding."""
    for module in {module for modules in BUILTIN.values() for module in modules} | {"timm", "kornia"}:
        importlib.import_module(module)  # takes its time, which is no case's
    for index in range(count):
        name = f"{make.__module__.rpartition('.')[2]} {seed} {index}"
        draw = random.Random(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tried = make(draw, folder)
        except Exception:  # noqa: BLE001 - of the libraries that write
            outcomes["not made"] += 1  # such a file cannot be written at all
            continue
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tried()
            outcomes["done"] += 1
        except UserError:
            outcomes["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcomes["findings"] += 1
            yield f"{name}: {''.join(traceback.format_exception(error)[-4:])}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > KILOBYTES:
            outcomes["findings"] += 1
            yield f"{name}: {grown >> 10} MB of memory"


def _late(number: int, frame: object) -> None:
    raise TooLong(f"more than {SECONDS:g} s")


for _number in (signal.SIGALRM, signal.SIGPROF):
    signal.signal(_number, _late)

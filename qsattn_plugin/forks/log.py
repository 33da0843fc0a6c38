"""A log of what the sampler sees in a fork, beside the losses that the fork prints.

The lines have the form of a run's ``metrics.jsonl``; a step is a call that chooses positions. One is written whenever
the fork has printed losses, or, as long as it has printed none, now and then.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from qsattn_plugin.forks.measure import cost, random_state
from qsattn_plugin.forks.swap import Swap
from qsattn_plugin.samplers import AttendsNowhere
from qsattn_plugin.samplers.points import Sampler

__all__ = ["SamplerLog", "losses_in"]

#: Calls between two lines: at least, and where the fork prints no losses. A line costs some calls of the sampler.
LEAST, OTHERWISE = 10, 50

#: "G_GAN: 0.512", "loss=1.2e-3"; a loss has a decimal point, an exponent, or is not finite.
_PAIR = re.compile(
    r"([A-Za-z_][\w./-]*)\s?[:=]\s*(-?(?:\d+\.\d*(?:e[+-]?\d+)?|\.\d+|\d+e[+-]?\d+|nan|inf))(?![\w.])", re.I
)
_NO_LOSSES = {"epoch", "iter", "iters", "step", "time", "data", "lr", "rate", "eta", "parameters", "it/s", "s/it"}


def losses_in(line: str) -> dict[str, float]:
    """Return the losses in a line that a fork prints.

    >>> from qsattn_plugin.forks.log import losses_in
    >>> losses_in("(epoch: 1, iters: 100, time: 0.241, data: 0.191) G_GAN: 0.512 NCE: 5.123")
    {'G_GAN': 0.512, 'NCE': 5.123}
    >>> losses_in("learning rate = 0.0002000")
    {}
    """
    return {name: float(value) for name, value in _PAIR.findall(line) if name.lower() not in _NO_LOSSES}


class SamplerLog:
    """Writes a line of JSON, with entropy quantiles, the largest probability, time and memory of each feature map.

    While it is entered it reads along what is printed.

    Args:
        path: The file; it is replaced.
        about: What the page's head says: the sampler, its arguments, the script.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, **about: Any):
        self._file = path.open("w", encoding="utf-8")
        self._write({"event": "start", "step": 0, **about})
        self._losses: dict[str, float] = {}
        self._any_losses = False
        self._last = -OTHERWISE
        self._stdout: TextIO | None = None

    def __enter__(self) -> SamplerLog:
        self._stdout = sys.stdout
        sys.stdout = _Copy(sys.stdout, self._read)  # type: ignore[assignment]  # all that a script asks of it
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._stdout is not None
        sys.stdout = self._stdout
        self._file.close()

    def _read(self, line: str) -> None:
        if self._last >= 0 and (found := losses_in(line)):  # before the first call it prints its options
            self._losses |= found
            self._any_losses = True

    def observe(self, swap: Swap, features: list[Tensor], count: int) -> None:
        """Write a line about a call that chose ``count`` positions of these features, if one is due."""
        calls = swap.counts["chosen"]
        due = bool(self._losses) or not self._any_losses
        if calls - self._last < (LEAST if self._losses else OTHERWISE) or not due:
            return
        line: dict[str, Any] = {"event": "train", "step": calls}
        line["losses"] = {name: _json(value) for name, value in self._losses.items()}
        with random_state(features[0].device), warnings.catch_warnings():
            warnings.simplefilter("ignore", AttendsNowhere)  # of one map alone
            with torch.no_grad():
                routes = swap.sampler(count).choose(features, observe=True)
            for index, (route, feature) in enumerate(zip(routes, features, strict=True)):
                milliseconds, megabytes = cost(partial(_chosen, swap.sampler(count, index)), [feature])
                figures: dict[str, float | None] = {name: float(value) for name, value in route.stats.items()}
                figures |= {"milliseconds": milliseconds, "megabytes": megabytes}
                line |= {f"tap_{index}/{name}": _json(value) for name, value in figures.items()}
        self._write(line)
        self._losses, self._last = {}, calls

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, default=str) + "\n")
        self._file.flush()


def _json(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


class _Copy:
    """A stream that also passes on each line."""

    def __init__(self, stream: TextIO, read: Callable[[str], None]):
        self._stream = stream
        self._pass_on = read
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = re.split(r"[\r\n]", self._begun + text)
        for line in lines:
            self._pass_on(line)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _chosen(sampler: Sampler, features: Sequence[Tensor]) -> list[Tensor]:
    """Return what the sampler gathers from one feature map."""
    return [sampler.choose(features)[0](features[0])]

"""Compare the choices of a fork's own sampler with a registered sampler in float64, on the same features.

For forks with their own QS-Attn: in float32, a softmax followed by a logarithm rounds the entropy of most rows to
exactly 0, and sorting equal numbers selects arbitrary rows.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.calls import Call
from qsattn_plugin.forks.ids import positions
from qsattn_plugin.forks.swap import Swap
from qsattn_plugin.text import text_table

__all__ = ["Check", "CheckFinished"]

#: Rows are equal if the overlaps of their probabilities with another row differ by no more than this.
TOLERANCE = 1e-6


class CheckFinished(BaseException):
    """Ends the fork's script; not an ``Exception``, so that the script does not catch it."""


class Check:
    """Observes a fork's own sampler for some calls, and then raises :class:`CheckFinished`.

    Args:
        swap: The sampler to compare with.
        steps: Number of calls that choose positions to observe.
    """

    def __init__(self, swap: Swap, steps: int = 3):
        self.swap = swap
        self.steps = steps
        self.layers: dict[int, dict[str, Any]] = {}
        self.costs: dict[str, list[tuple[float, float | None]]] = {"own": [], "ours": []}
        self.done = 0
        self._observing = False

    def __call__(self, module: nn.Module, call: Call) -> tuple:
        """Return what the fork's own function returns; observe the call if it chooses positions."""
        if self._observing or call.ids is not None or call.count == 0:
            return call.own(call.features)
        self._observing = True  # the fork's own function may call that of its base class, which is observed too
        result = call.own(call.features)
        with _random_state():
            self._observe(module, call, result)
        self._observing = False
        self.done += 1
        if self.done == self.steps:
            raise CheckFinished
        return result

    def _observe(self, module: nn.Module, call: Call, result: tuple) -> None:
        again = call.own(call.features)
        for index, feature in enumerate(call.features):
            layer = self.layers.setdefault(index, {"shape": tuple(feature.shape[1:]), "own": [], "ours": []})
            queries = min(call.count, feature.shape[-2:].numel())
            places, rows = _chosen(result, index, feature, call)
            layer["how"] = _how(places, rows, _chosen(again, index, feature, call)[0])
            if layer["how"] == "random":
                continue
            best = self._exact(feature, call.count)
            layer["ours"].append(_hits(self._choose(feature, call.count), best) / queries)
            if places is not None:
                layer["own"].append(_hits(places, best) / queries)
            elif rows is not None:
                layer["own"].append(self._rows_hit(rows, feature, best, call.count) / queries)
        ours = self._like_own(call.count)
        for name, run in (("own", call.own), ("ours", lambda features: ours(module, _alone(call, features)))):
            self.costs[name].append(_cost(run, call.features))

    def _like_own(self, count: int) -> Swap:
        """Return the registered sampler, with attention on the maps where the fork's has it, unless taps are set."""
        taps = tuple(i for i, layer in sorted(self.layers.items()) if layer["how"] != "random")
        fixed = not taps or "taps" in self.swap.arguments or not hasattr(self.swap.sampler(count), "taps")
        return self.swap if fixed else Swap(self.swap.name, **(self.swap.arguments | {"taps": taps}))

    def _sampler(self, count: int) -> Any:
        takes = {"taps": "all"} if hasattr(self.swap.sampler(count), "taps") else {}
        return Swap(self.swap.name, **(self.swap.arguments | takes)).sampler(count)

    @torch.no_grad()
    def _choose(self, feature: Tensor, count: int) -> Tensor:
        return self._sampler(count).choose([feature])[0].queries

    def _exact(self, feature: Tensor, count: int) -> Tensor:
        return self._choose(feature.detach().double(), count)

    @torch.no_grad()
    def _rows_hit(self, rows: Tensor, feature: Tensor, best: Tensor, count: int) -> float:
        """Return how many of the attention rows (B, N, M) belong to the right queries (B, N), a mean over images.

        The query of a row is the position whose row in float64 has the largest overlap with it. Where several rows are
        equal, one right position among theirs is enough.
        """
        router = getattr(self._sampler(count), "router", None)
        if router is None:
            raise UserError(f"sampler {self.swap.name!r} has no attention to compare the fork's with")
        batch, _, height, width = feature.shape
        exact, own = feature.detach().double(), rows.double().clamp(min=0).sqrt()
        overlaps = []
        for some in torch.arange(height * width, device=feature.device).split(512):
            of_some = router.rows(exact, some.expand(batch, -1))
            if of_some.shape[-1] != own.shape[-1]:
                raise UserError(
                    f"the fork's attention has rows of {own.shape[-1]} places, sampler {self.swap.name!r} of "
                    f"{of_some.shape[-1]}: name the sampler that it implements with --sampler"
                )
            overlaps.append(own @ of_some.sqrt().transpose(1, 2))
        overlap = torch.cat(overlaps, dim=2)
        most = overlap.amax(2, keepdim=True)
        right = torch.zeros(batch, height * width, dtype=torch.bool, device=feature.device).scatter(1, best, True)
        return ((overlap >= most - TOLERANCE) & right.unsqueeze(1)).any(2).sum(1).double().mean().item()

    def table(self) -> str:
        """Return the results as a text table."""
        head = ("map", "size", "its own sampler", "of its queries right", f"{self.swap.name} in float32")
        rows: list[tuple[str, ...]] = [head]
        for index, layer in sorted(self.layers.items()):
            shape = " x ".join(map(str, layer["shape"]))
            own, ours = (_percent(layer[name]) for name in ("own", "ours"))
            rows.append((str(index), shape, _WORDS[layer["how"]], own, ours))
        rows.append(("", "", "", "", ""))
        rows.append(("", "a call, with gradient", "its own", self.swap.name, ""))
        for title, which, unit in (("time", 0, "ms"), ("memory", 1, "MB")):
            values = []
            for name in ("own", "ours"):
                known = [value for cost in self.costs[name] if (value := cost[which]) is not None]
                values.append(f"{statistics.median(known):.1f} {unit}" if known else "not known")
            rows.append(("", title, *values, ""))
        return text_table(rows)


_WORDS = {"random": "random", "positions": "chooses positions", "attention": "attention"}


def _percent(shares: list[float]) -> str:
    return f"{100 * statistics.fmean(shares):.1f} %" if shares else "-"


def _alone(call: Call, features: list[Tensor]) -> Call:
    """Return the call with other features, without the arguments that only the fork's own sampler uses."""
    return Call(
        features, call.count, None, call.own, call.project, choice=call.choice, use_mlp=call.use_mlp, prj=call.prj
    )


def _chosen(result: tuple, index: int, feature: Tensor, call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Return the positions (B, N) and the attention rows (B, N, M) that a call chose for one layer, or None each."""
    ids = result[2 if call.return_all else 1][index]
    places = positions(ids, feature) if ids is not None and len(ids) else None
    rows = result[2][index].detach() if call.wants_rows and len(result) > 2 else None
    if rows is None or rows.ndim < 3:  # a placeholder, where there was no attention
        return places, None
    return places, rows.reshape(feature.shape[0], -1, rows.shape[-1])


def _how(places: Tensor | None, rows: Tensor | None, again: Tensor | None) -> str:
    if places is not None:
        return "positions" if again is not None and torch.equal(again, places) else "random"
    if rows is None:
        raise UserError("the fork's sampler returns neither the positions that it chose nor the attention's rows")
    return "attention"


def _hits(chosen: Tensor, best: Tensor) -> float:
    """Return how many of the positions (B, N) are among the best (B, N), a mean over images."""
    return (chosen.unsqueeze(2) == best.unsqueeze(1)).any(2).sum(1).double().mean().item()


def _cost(run: Callable, features: list[Tensor]) -> tuple[float, float | None]:
    """Return milliseconds and peak megabytes of a call and its gradient to the features."""

    def step() -> None:
        leaves = [f.detach().clone().requires_grad_() for f in features]
        pooled = run(leaves)[0]
        torch.autograd.grad(sum((p * p[:1]).sum() for p in pooled), leaves, allow_unused=True)

    device = features[0].device
    cuda = device.type == "cuda"
    memory = None
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        memory = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    elif device.type == "cpu":
        memory = _profiled(step)
    if cuda:  # earlier work is not part of the call that is timed
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - begin), memory


def _profiled(step: Callable[[], None]) -> float:
    """Return the peak memory of the CPU allocator during a step, in megabytes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints the start and end of the profiler
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 1e6


@contextmanager
def _random_state() -> Iterator[None]:
    """Restore every random generator that a fork may draw from."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    if numpy:
        numpy.random.set_state(state)

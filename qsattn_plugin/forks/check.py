"""Compare the choices of a fork's own sampler with a registered sampler in float64, on the same features.

For forks with their own QS-Attn: in float32, a softmax followed by a logarithm rounds the entropy of most rows to
exactly 0, and sorting equal numbers selects arbitrary rows.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.attention.routes import by
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.calls import Call
from qsattn_plugin.forks.guard import Comparison, compare
from qsattn_plugin.forks.ids import positions
from qsattn_plugin.forks.measure import cost, random_state
from qsattn_plugin.forks.swap import Swap
from qsattn_plugin.text import text_table

__all__ = ["Check", "CheckFinished", "guess_sampler"]

#: Rows are equal if the overlaps of their probabilities with another row differ by no more than this.
TOLERANCE = 1e-6


class CheckFinished(BaseException):
    """Ends the fork's script; not an ``Exception``, so that the script does not catch it."""


#: A word of a fork's options or names -> the registered sampler that it implements.
_MODES = {"local_global": "qsattn_local_global", "local": "qsattn_local", "global": "qsattn_global"}


def guess_sampler(words: Sequence[str]) -> tuple[str, str] | None:
    """Return the sampler that a fork's own QS-Attn implements, and the word that says so; None where none does.

    A word is a mode, or the name of a module or class: "local-global", "models.networks_local".
    """
    for word in words:
        plain = re.sub(r"[^a-z]+", "_", word.lower()).replace("localglobal", "local_global")
        for mode, sampler in _MODES.items():
            if re.search(rf"(^|_){mode}($|_)", plain):
                return sampler, word
    return None


class Check:
    """Observes a fork's own sampler for some calls, and then raises :class:`CheckFinished`.

    Args:
        swap: The sampler to compare with.
        steps: Number of calls that choose positions to observe.
        why: Why this sampler, for the table's head; None lets the names of the called class and of its module decide,
            where they can.
    """

    def __init__(self, swap: Swap, steps: int = 3, why: str | None = ""):
        self.swap = swap
        self.steps = steps
        self.why = why
        self.layers: dict[int, dict[str, Any]] = {}
        self.costs: dict[str, list[tuple[float, float | None]]] = {"own": [], "ours": []}
        self.comparison: Comparison | None = None
        self.trainable = 0
        self.done = 0

    def __call__(self, module: nn.Module, call: Call) -> tuple:
        """Return what the fork's own function returns; observe the call if it chooses positions."""
        assert call.own is not None
        if call.ids is not None or call.count <= 0:
            return call.own(call.features)
        result = call.own(call.features)
        if self.why is None:
            kind = type(module)
            found = guess_sampler([kind.__name__, kind.__module__.rpartition(".")[2]])
            self.why = f"guessed from {found[1]}" if found else "the default; name another one with --sampler"
            if found:
                self.swap = Swap(found[0], inside=self.swap.inside, **self.swap.arguments)
        with random_state(call.features[0].device):
            self._observe(module, call, result)
        self.done += 1
        if self.done >= self.steps:  # a script may catch even this, and go on
            raise CheckFinished
        return result

    def _observe(self, module: nn.Module, call: Call, result: tuple) -> None:
        assert call.own is not None
        own = call.own
        again = own(call.features)
        for index, feature in enumerate(call.features):
            layer = self.layers.setdefault(index, {"shape": tuple(feature.shape[1:]), "own": [], "ours": []})
            queries = min(call.count, feature.shape[2:].numel())
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
        self.trainable = sum(p.requires_grad for p in module.parameters())
        self.comparison = compare(self.swap.at_own_positions, module, call)
        self.costs["own"].append(cost(lambda features: own(features)[0], call.features))
        if self.swap.inside or not self.comparison.problem:
            alone: dict[str, Any] = {"ids": None, "return_all": False, "wants_rows": False}
            ours = self._like_own(call.count)
            self.costs["ours"].append(
                cost(lambda features: ours.swapped(module, replace(call, features=features, **alone))[0], call.features)
            )

    def _like_own(self, count: int) -> Swap:
        """Return the registered sampler, with attention on the maps where the fork's has it, unless taps are set."""
        taps = tuple(i for i, layer in sorted(self.layers.items()) if layer["how"] != "random")
        fixed = not taps or "taps" in self.swap.arguments or not hasattr(self.swap.sampler(count), "taps")
        return self.swap if fixed else self._with(taps=taps)

    def _sampler(self, count: int) -> Any:
        return (self._with(taps="all") if hasattr(self.swap.sampler(count), "taps") else self.swap).sampler(count)

    def _with(self, **arguments: Any) -> Swap:
        return Swap(self.swap.name, inside=self.swap.inside, **(self.swap.arguments | arguments))

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
        batch, places = feature.shape[0], feature.shape[2:].numel()
        exact, own = feature.detach().double(), rows.double().clamp(min=0).sqrt()
        overlaps = []
        for some in torch.arange(places, device=feature.device).split(512):
            of_some = router.rows(exact, some.expand(batch, -1))
            if of_some.shape[-1] != own.shape[-1]:
                raise UserError(
                    f"the fork's attention has rows of {own.shape[-1]} places, sampler {self.swap.name!r} of "
                    f"{of_some.shape[-1]}: name the sampler that it implements with --sampler"
                )
            overlaps.append(own @ of_some.sqrt().transpose(1, 2))
        overlap = torch.cat(overlaps, dim=2)
        most = overlap.amax(2, keepdim=True)
        right = torch.zeros(batch, places, dtype=torch.bool, device=feature.device).scatter(1, best, True)
        return ((overlap >= most - TOLERANCE) & right.unsqueeze(1)).any(2).sum(1).double().mean().item()

    def table(self) -> str:
        """Return the results as a text table, and what to do about them."""
        assert self.comparison is not None
        head = ("map", "size", "its own sampler", "of its queries right", f"{self.swap.name} in float32")
        rows: list[tuple[str, ...]] = [head]
        for index, layer in sorted(self.layers.items()):
            own, ours = (_percent(layer[name]) for name in ("own", "ours"))
            rows.append((str(index), by(layer["shape"]), _WORDS[layer["how"]], own, ours))
        rows.append(("", "", "", "", ""))
        rows.append(("", "a call, with gradient", "its own", self.swap.name, ""))
        for title, which, unit in (("time", 0, "ms"), ("memory", 1, "MB")):
            values = []
            for name in ("own", "ours"):
                known = [value for cost in self.costs[name] if (value := cost[which]) is not None]
                values.append(f"{statistics.median(known):.1f} {unit}" if known else "not known")
            rows.append(("", title, *values, ""))
        trained = (f"{len(names)} of {self.trainable}" for names in (self.comparison.own, self.comparison.ours))
        rows.append(("", "parameters with a gradient", *trained, ""))
        same = "equal" if not self.comparison.difference else f"within {self.comparison.difference:.0e}"
        same = "others, see below" if self.comparison.problem else same
        rows.append(("", "rows at the same positions", "", same, ""))
        lines = [f"compared with {self.swap.name}{f' ({self.why})' if self.why else ''}", text_table(rows)]
        if self.comparison.problem:
            lines.append(
                f"At the same positions, {self.comparison.problem}. The class does work of its own: swap with --inside."
            )
        return "\n".join(lines)


_WORDS = {"random": "random", "positions": "chooses positions", "attention": "attention"}


def _percent(shares: list[float]) -> str:
    return f"{100 * statistics.fmean(shares):.1f} %" if shares else "-"


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

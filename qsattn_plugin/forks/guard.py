"""Compare a swapped call with the fork's own function: the same rows at the same positions, the same gradients.

A swap takes over what CUT's sampler does. A class that does more, for example rearranges large maps before it samples,
or has an argument of its own that leaves its MLPs out, would be swapped for something else without an error.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.calls import Call
from qsattn_plugin.forks.measure import evaluating, random_state

__all__ = ["Comparison", "ForkWarning", "Guard", "compare"]

#: Largest relative difference that counts as rounding. The same numbers are multiplied in float32, or in half precision
#: where the module's own weights are; a class adds different numbers 1e-7 to the norms that it divides by.
ROUNDING, ROUNDING_HALF = 1e-3, 5e-2

#: Steps of the optimizer of the heads after which all of them should have had a gradient.
FIRST_STEPS = 3

#: ``answer(module, call)``: the swapped result of a call that was given positions, and for which maps they were known.
Answer = Callable[[nn.Module, Call], tuple[tuple, list[bool]]]


class ForkWarning(UserWarning):
    """The swap does less in this fork than it should."""


@dataclass(frozen=True)
class Comparison:
    """A swapped call beside the fork's own function.

    Attributes:
        difference: the largest difference of two values, relative to the largest value.
        problem: what differs by more than rounding, in words; "" where nothing does.
        own: names of the module's parameters that get a gradient from the fork's own function.
        ours: those that get one from the swapped call.
        ids: the positions that the fork's own function chose, in the form that it returned.
        rows: likewise the attention's rows, or None.
    """

    difference: float
    problem: str
    own: frozenset[str]
    ours: frozenset[str]
    ids: Any
    rows: Any


def compare(answer: Answer, module: nn.Module, call: Call, ids: Any = None, rows: Any = None) -> Comparison:
    """Run the fork's own function and the swapped one on the features of a call, at the same positions.

    Both run in evaluation mode, in full precision, without a trace in the random generators.

    Args:
        answer: gives the swapped result.
        module: the fork's sampler.
        call: the call; whether it chooses positions or was given some, ``ids`` decides.
        ids: positions that the fork's own function returned earlier; None lets it choose.
        rows: likewise the attention's rows.

    Raises:
        Exception: whatever the fork's own function raises.
    """
    assert call.own is not None
    device = call.features[0].device
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    dtype = next((p.dtype for p in parameters.values()), torch.float32)
    features = [f.detach().to(dtype if f.dtype != torch.float64 else f.dtype, copy=True) for f in call.features]
    given = {} if ids is None else {"ids": ids, **({"rows": rows} if call.wants_rows else {})}
    with random_state(device), evaluating(module), no_autocast(device.type), torch.enable_grad():
        own = call.own(features, **given)
        if problem := _other_form(own, call):
            return Comparison(float("inf"), problem, frozenset(), frozenset(), None, None)
        if ids is None:
            ids = own[2 if call.return_all else 1]
            rows = own[2] if call.wants_rows and len(own) > 2 else None
        moved = frozenset(_moved(own[0], parameters))
        try:
            ours, known = answer(module, replace(call, features=features, ids=ids, rows=rows))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # features that its heads do not fit
            problem = f"a swapped sampler fails ({_first_line(error)})"
            return Comparison(float("inf"), problem, moved, frozenset(), ids, rows)
        difference, problem = _differ(own, ours, known, call)
        return Comparison(difference, problem, moved, frozenset(_moved(ours[0], parameters)), ids, rows)


def _other_form(own: Any, call: Call) -> str:
    """Return in words that the fork's own function returns other things than a swapped call; "" where it does not."""
    values = 2 + call.return_all + call.wants_rows
    if not isinstance(own, tuple | list) or len(own) != values:
        what = f"{len(own)} values" if isinstance(own, tuple | list) else f"a {type(own).__name__}"
        return f"it returns {what}, a swapped sampler {values} values"
    for value in own:
        if isinstance(value, Mapping):
            return f"it returns a {type(value).__name__}, a swapped sampler lists"
        if len(value) != len(call.features):
            return f"it returns {len(value)} values for {len(call.features)} feature maps"
    return ""


def _differ(own: Sequence, ours: Sequence, known: list[bool], call: Call) -> tuple[float, str]:
    """Return the largest relative difference of two results, and what differs by more than rounding."""
    largest, problems = 0.0, []
    for which in (0, 1) if call.return_all else (0,):
        for index, (a, b, is_known) in enumerate(zip(own[which], ours[which], known, strict=True)):
            if not is_known:
                continue
            size = " x ".join(map(str, call.features[index].shape[1:]))
            if a.shape != b.shape:
                largest = float("inf")
                shapes = (" x ".join(map(str, t.shape)) for t in (a, b))
                problems.append("feature map {} ({}) gives {}, and {} when swapped".format(index, size, *shapes))
                continue
            a, b = (t.detach().double().nan_to_num() for t in (a, b))
            difference = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
            largest = max(largest, difference)
            if difference > (ROUNDING_HALF if own[which][index].element_size() < 4 else ROUNDING):
                problems.append(f"feature map {index} ({size}) gives values that differ by up to {difference:.1%}")
    return largest, "; ".join(problems)


def _moved(rows: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the parameters that get a gradient from a weighted sum of the rows."""
    sums = [(r * torch.linspace(-1, 1, r.numel(), device=r.device).view_as(r)).sum() for r in rows if r.requires_grad]
    if not sums or not parameters:
        return []
    gradients = torch.autograd.grad(torch.stack(sums).sum(), list(parameters.values()), allow_unused=True)
    return [name for name, g in zip(parameters, gradients, strict=True) if g is not None and bool(g.any())]


class Guard:
    """Compares the first call of each form, and stops where a swap would leave out work of the fork's own.

    After the first steps of the optimizer of the module's parameters it warns where one that should have a gradient
    has none.

    Args:
        answer: gives the swapped result.
    """

    def __init__(self, answer: Answer):
        self._answer = answer
        self._seen: set[tuple] = set()
        self._chosen: Comparison | None = None
        self._watches: weakref.WeakKeyDictionary[nn.Module, _Watch] = weakref.WeakKeyDictionary()

    def __call__(self, module: nn.Module, call: Call, choose: bool) -> None:
        """Compare a call, unless one of its form was compared before.

        Raises:
            UserError: the fork's own function returns something else at the same positions.
        """
        watch = self._watches.get(module)
        if watch is not None and watch.done:
            watch.remove()  # not in the step itself, where torch goes through its hooks
        names = tuple(name for name, _ in module.named_parameters())
        how = (call.return_all, call.choice is None, call.use_mlp, call.prj)
        form = (type(module), names, choose, len(call.features), *how)
        if call.own is None or call.count <= 0 or form in self._seen:
            return
        last = self._chosen
        given = (None, None) if choose or last is None else (last.ids, last.rows)
        if not choose and (given[0] is None or len(given[0]) != len(call.features)):
            return  # the next call of this form is compared
        self._seen.add(form)
        kind = type(module).__name__
        try:
            found = compare(self._answer, module, call, *given)
        except Exception as error:  # noqa: BLE001 - a fork's own function may not run here; its swap may
            _warn(f"{kind} could not be compared with what it does unswapped ({_first_line(error)})")
            return
        if choose:
            self._chosen = found
        if found.problem:
            raise UserError(
                f"{kind} does work of its own that a swap would leave out: at the same positions, {found.problem}. "
                "swap_sampler(..., inside=True), or qsattn fork --inside, has it do all of its work, and replaces only "
                "where it looks and how features are gathered"
            )
        if left_out := sorted(found.own - found.ours):
            _warn(
                f"{len(left_out)} of the {len(found.own)} parameters of {kind} that its own sampling trains get no "
                f"gradient when it is swapped: {_some(left_out)}"
            )
        if watch is None:
            watch = self._watches[module] = _Watch(module)
        watch.add(found.own & found.ours)


class _Watch:
    """Warns if a module's parameters have had no gradient after the first steps of their optimizer."""

    def __init__(self, module: nn.Module):
        self.names: set[str] = set()
        self.steps = 0
        self._module = weakref.ref(module)
        self._waiting: set[str] = set()
        self._hook = register_optimizer_step_post_hook(self._look)

    def add(self, names: Iterable[str]) -> None:
        self._waiting |= set(names) - self.names
        self.names |= set(names)

    def remove(self) -> None:
        self._hook.remove()

    @property
    def done(self) -> bool:
        return self.steps >= FIRST_STEPS or self._module() is None

    def _look(self, optimizer: Optimizer, *_: Any) -> None:
        module = self._module()
        if module is None or self.done:
            return
        in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = {n: p for n, p in module.named_parameters() if id(p) in in_optimizer}
        if not mine:
            return
        self.steps += 1
        self._waiting -= {n for n, p in mine.items() if p.grad is not None and bool(p.grad.any())}
        if self.done and (without := sorted(self._waiting & mine.keys())):
            _warn(
                f"after {self.steps} steps of their optimizer, {len(without)} of {len(self.names)} parameters of "
                f"{type(module).__name__} have had no gradient, though the fork's own function gives them one on the "
                f"same features: {_some(without)}. They are not trained unless the loss uses them later"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _warn(text: str) -> None:
    warnings.warn(text, ForkWarning, stacklevel=4)

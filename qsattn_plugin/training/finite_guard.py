"""Finding losses and weights that became NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError


class NonFiniteLossError(UserError):
    """A loss, a weight or a translation became NaN or infinite."""

    @classmethod
    def of(cls, what: str) -> NonFiniteLossError:
        """Return an error about ``what`` is not finite, which says what helps."""
        return cls(f"{what}. Resume from an earlier checkpoint with a smaller train.lr or train.precision=fp32")


class FiniteGuard:
    """Detects losses that are not finite, without synchronising with the device at every step.

    For each loss, the first step at which it was not finite is kept in a tensor on the device; :meth:`check` reads it.
    """

    def __init__(self) -> None:
        self._first_bad: dict[str, Tensor] = {}

    def record(self, step: int, losses: dict[str, Tensor]) -> None:
        """Record a step's losses (0-dim tensors); statistics, whose names contain a slash, are ignored."""
        for name, loss in losses.items():
            if not loss.is_floating_point() or "/" in name:
                continue
            if name not in self._first_bad:
                self._first_bad[name] = torch.full((), math.inf, device=loss.device)
            # Kept on the device: reading it here would make the host wait for every step.
            bad = torch.where(loss.isfinite(), math.inf, float(step))
            self._first_bad[name] = torch.minimum(self._first_bad[name], bad)

    def to_floats(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Return the losses as Python numbers.

        Raises:
            NonFiniteLossError: see :meth:`check`; the message also names taps whose features are not finite.
        """
        values = {name: value.item() for name, value in losses.items()}
        nonfinite = [name for name, value in values.items() if name.endswith("nonfinite") and value]
        self.check(", ".join(name.removesuffix("/nonfinite") for name in nonfinite))
        return values

    def check(self, taps: str = "") -> None:
        """Check all losses recorded so far.

        Raises:
            NonFiniteLossError: a loss was not finite; the message names the first such step and its losses.
        """
        bad = {name: step.item() for name, step in self._first_bad.items() if math.isfinite(step.item())}
        if bad:
            first = min(bad.values())
            names = ", ".join(name for name, step in bad.items() if step == first)
            where = f"; the source features are not finite at {taps}" if taps else ""
            raise NonFiniteLossError.of(f"the loss {names} became NaN or infinite at step {first:.0f}{where}")


def check_weights(step: int, weights: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite, so that a useless checkpoint never replaces a usable one.

    Raises:
        NonFiniteLossError: a weight is not finite; the message names the first such tensor.
    """
    floating = {name: t for name, t in weights.items() if t.is_floating_point()}
    bad = torch.stack([~t.isfinite().all() for t in floating.values()]).cpu().tolist()  # read once
    names = [name for name, is_bad in zip(floating, bad, strict=True) if is_bad]
    if names:
        many = f"{len(names)} of {len(bad)} weights are NaN or infinite at step {step}"
        raise NonFiniteLossError.of(f"{many}, the first is {names[0]}")

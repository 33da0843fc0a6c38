"""Routes: which positions of a feature map are queries, and how features are gathered for them.

A route is chosen once, on the source features, and applied to the features of both domains: the paper's cross-domain
value routing. It maps features (B, C, H, W), with any number of channels, to (B, N, C). The features may have any
number of spatial dimensions: (B, C, L), (B, C, D, H, W), ...; "row by row" then means that the last one runs fastest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from qsattn_plugin.attention.entropy import full_precision, operator
from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import UserError

__all__ = ["AttentionRoute", "OwnRoute", "PointRoute", "Route", "WindowRoute", "gather_positions", "gather_windows"]


class Route:
    """Base class of routes. Routes are immutable: their methods return new ones.

    Attributes:
        queries: LongTensor (B, N), the positions, counted row by row.
        shape: (H, W) of the features that the route was chosen on, or as many sizes as they have dimensions.
        stats: statistics of the choice, 0-dim tensors on its device, by name.
    """

    def __init__(self, queries: Tensor, shape: Sequence[int], stats: dict[str, Tensor] | None = None):
        self.queries = queries
        self.shape = tuple(shape)
        self.stats = stats if stats is not None else {}

    def __call__(self, features: Tensor) -> Tensor:
        """Return the features (B, N, C), float32 or float64, that the route gathers from (B, C, H, W).

        Raises:
            UserError: the batch size or a spatial size differs from that of the features the route was chosen on.
        """
        batch = self.queries.shape[0]
        if (features.shape[0], *features.shape[2:]) != (batch, *self.shape):
            raise UserError(
                f"this route was chosen on {batch} image(s) of {by(self.shape)} positions and cannot be applied to "
                f"features of shape {tuple(features.shape)}; choose it on features of the same layer and batch"
            )
        # Probabilities and features are multiplied in the precision they were computed in, not in that of autocast.
        with no_autocast(features.device.type):
            return self._gather(_widest(features, self._rows_dtype()))

    def _rows_dtype(self) -> torch.dtype:
        return torch.float32

    def _gather(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def detach(self) -> Route:
        """Return the route without its gradient to the source features."""
        return self

    def to(self, device: torch.device | str) -> Route:
        """Return the route on another device."""
        tensors = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return self._with(**tensors, stats={name: v.to(device) for name, v in self.stats.items()})

    def _with(self, **changes: Any) -> Route:
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def __repr__(self) -> str:
        batch, n = self.queries.shape
        return f"{type(self).__name__}({batch} x {n} queries of {by(self.shape)} positions)"


class PointRoute(Route):
    """Gathers the features at the queries, as CUT does."""

    def _gather(self, features: Tensor) -> Tensor:
        return gather_positions(features.flatten(2), self.queries).transpose(1, 2)


class _RowsRoute(Route):
    """Multiplies ``rows`` of the source's attention with features."""

    rows: Tensor

    def _rows_dtype(self) -> torch.dtype:
        return self.rows.dtype

    def detach(self) -> Route:
        return self._with(rows=self.rows.detach())


class AttentionRoute(_RowsRoute):
    """Multiplies rows of the source's global attention with the features.

    Args:
        rows: (B, N, HW), non-negative, each row sums to 1.
        queries: (B, N).
        shape: (H, W).
        stats: see :class:`Route`.
    """

    def __init__(self, rows: Tensor, queries: Tensor, shape: Sequence[int], stats: dict[str, Tensor] | None = None):
        super().__init__(queries, shape, stats)
        self.rows = rows

    def _gather(self, features: Tensor) -> Tensor:
        # In this order the gradient has the memory layout of the features. Transposed, its channels would lie side by
        # side, which PyTorch's instance norm on the CPU (2.15, batch size 1) misreads.
        return torch.bmm(features.flatten(2), self.rows.to(features.dtype).transpose(1, 2)).transpose(1, 2)


class WindowRoute(_RowsRoute):
    """Multiplies rows of the source's local attention with the features in the window around each query.

    Args:
        rows: (B, N, window^2), each sums to 1 and is 0 beyond the border.
        queries: (B, N).
        shape: (H, W).
        window: side of the window, odd.
        stats: see :class:`Route`.
    """

    def __init__(
        self, rows: Tensor, queries: Tensor, shape: Sequence[int], window: int, stats: dict[str, Tensor] | None = None
    ):
        super().__init__(queries, shape, stats)
        self.rows, self.window = rows, window

    def _gather(self, features: Tensor) -> Tensor:
        values, _ = gather_windows(features, self.queries, self.window)
        return (self.rows.to(features.dtype).unsqueeze(1) * values).sum(-1).transpose(1, 2)


class Attention(Protocol):
    """Makes routes: global or local attention."""

    def route(self, features: Tensor, queries: Tensor, detach: bool = False) -> Route: ...


class OwnRoute(Route):
    """Computes attention rows from the features it is applied to, at queries that were chosen on the source.

    Args:
        attention: computes the rows.
        queries: (B, N).
        shape: (H, W).
        detached: no gradient flows through the rows.
        stats: see :class:`Route`.
    """

    def __init__(
        self,
        attention: Attention,
        queries: Tensor,
        shape: Sequence[int],
        detached: bool = False,
        stats: dict[str, Tensor] | None = None,
    ):
        super().__init__(queries, shape, stats)
        self.attention = attention
        self.detached = detached

    def _gather(self, features: Tensor) -> Tensor:
        return self.attention.route(features, self.queries, self.detached)._gather(features)

    def detach(self) -> Route:
        return self._with(detached=True)


def gather_positions(features: Tensor, queries: Tensor) -> Tensor:
    """Return the features (B, C, HW) at the queries (B, N): (B, C, N)."""
    return features.gather(2, queries.unsqueeze(1).expand(-1, features.shape[1], -1))


def _fake_rows(features: Tensor, queries: Tensor, scale: float) -> Tensor:
    return features.new_empty(*queries.shape, features.shape[2])


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, queries, ctx.scale = inputs
    ctx.save_for_backward(features, queries, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    features, queries, rows = ctx.saved_tensors
    scores = torch._softmax_backward_data(grad, rows, -1, rows.dtype)
    keys = torch.bmm(ctx.scale * gather_positions(features, queries), scores)
    anchors = ctx.scale * torch.bmm(features, scores.transpose(1, 2))
    return keys.scatter_add_(2, queries.unsqueeze(1).expand_as(anchors), anchors), None, None


@operator(
    "global_rows",
    "(Tensor features, Tensor queries, float scale) -> Tensor",
    _fake_rows,
    keep=_keep,
    backward=_backward,
)
def global_rows(features: Tensor, queries: Tensor, scale: float) -> Tensor:
    """Return the queries' rows of softmax(scale * F F^T), (B, N, M), of F (B, C, M) and queries (B, N).

    An operator, because torch.compile would not keep the precision of its matrix product, and because its gradient
    takes half the memory of autograd's: the gradient of the queries is added into that of the keys.
    """
    with full_precision(features.device):
        return torch.bmm((scale * gather_positions(features, queries)).transpose(1, 2), features).softmax(dim=-1)


def gather_windows(features: Tensor, queries: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return the features (B, C, H, W) in the windows around the queries (B, N), and which lie inside the image.

    Returns:
        (B, C, N, window^2), where positions beyond the border repeat it, and a bool tensor (B, N, window^2); window^n
        for n spatial dimensions.
    """
    sizes = features.shape[2:]
    offsets = torch.arange(window ** len(sizes), device=queries.device)
    left = queries.unsqueeze(-1)
    inside, places, stride = torch.ones_like(left + offsets, dtype=torch.bool), torch.zeros_like(left + offsets), 1
    for size in reversed(sizes):  # the last dimension runs fastest
        at = left % size + (offsets % window - window // 2)
        inside = inside & (at >= 0) & (at < size)
        places = places + at.clamp(0, size - 1) * stride
        left, offsets, stride = left // size, offsets // window, stride * size
    gathered = gather_positions(features.flatten(2), places.flatten(1))
    return gathered.unflatten(-1, (queries.shape[1], -1)), inside


def by(sizes: Sequence[int]) -> str:
    """Return sizes as words: "4 x 8 x 8"."""
    return " x ".join(map(str, sizes))


def _widest(features: Tensor, rows: torch.dtype) -> Tensor:
    return features.to(torch.promote_types(torch.promote_types(features.dtype, torch.float32), rows))

"""The paper's equations: the attention of each position of a feature map, and which positions are selected.

Global attention is ``A = softmax(F F^T)`` by row, F being the raw features (HW, C) of one layer; local attention is
the same within a k x k window. A row's entropy is ``H_i = -sum_j A_ij log A_ij`` (QS-Attn, CVPR 2022); the N
rows with the smallest entropy are the queries. Feature maps are (B, C, H, W), positions are counted row by row. All of
it works for any number of spatial dimensions, (B, C, L) or (B, C, D, H, W); windows are then window^n places large.

Everything is computed in float32 (float64 for float64 features), regardless of autocast and of the precision set for
matrix products: scores are of the order of 1000 and are exponentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsattn_plugin.attention.entropy import at_least_float32, global_entropy, local_entropy, local_scores
from qsattn_plugin.attention.routes import (
    AttentionRoute,
    Route,
    WindowRoute,
    gather_positions,
    gather_windows,
    global_rows,
)
from qsattn_plugin.errors import at_least

__all__ = ["GlobalAttention", "LocalAttention", "local_scores", "row_entropy", "select_queries"]


def row_entropy(features: Tensor, tile: int | None = None, log: bool = False, scale: float = 1.0) -> Tensor:
    """Return the entropy of every row of ``softmax(scale * F F^T)``, or its logarithm.

    Rows are computed in tiles, so that no HW x HW matrix is ever held. The logarithm also ranks saturated rows, whose
    entropy rounds to 0. No gradient flows through the result.

    Args:
        features: F, (B, HW, C), any floating dtype.
        tile: rows at a time; None adapts it to the device's memory and cache.
        log: return log H instead of H.
        scale: factor on the dot products; the paper's is 1.

    Returns:
        (B, HW), float32 (float64 for float64 features). H lies in [0, log(HW)], log H in [-inf, log(log(HW))].

    Raises:
        ValueError: the scale or the tile is not positive, or the features are not (B, HW, C).
    """
    if features.ndim != 3:
        raise ValueError(f"features: must be (B, HW, C), got {tuple(features.shape)}")
    _check_scale(scale)
    _check_tile(tile)
    log_entropy, _ = global_entropy(features.transpose(1, 2), scale, tile)
    return log_entropy if log else log_entropy.exp()


@torch.no_grad()
def select_queries(significance: Tensor, n: int) -> Tensor:
    """Return the ``n`` most significant positions of each image, the most significant first.

    Among equals the lower position comes first, on any device; NaN ranks last. No value is read back to the host.

    Args:
        significance: (B, HW), larger is more significant.
        n: number of positions; at most HW are returned.

    Returns:
        LongTensor (B, min(n, HW)).

    Raises:
        ValueError: n is less than 1, or the significance is not (B, HW).
    """
    at_least(1, n=n)
    if significance.ndim != 2:
        raise ValueError(f"significance: must be (B, HW), got {tuple(significance.shape)}")
    if significance.is_floating_point():
        # A true -inf must still come before a NaN, and sort would put NaN first.
        lowest = torch.finfo(significance.dtype).min
        significance = significance.clamp(min=lowest).nan_to_num(nan=-torch.inf, posinf=torch.inf)
    return significance.sort(dim=-1, descending=True, stable=True).indices[:, :n]


class GlobalAttention:
    """Every position attends to every position: ``softmax(scale * F F^T)`` by row.

    Args:
        scale: factor on the dot products; the paper's is 1.
        tile: rows at a time for the entropy of all rows; None adapts it to the device.
    """

    def __init__(self, scale: float = 1.0, tile: int | None = None):
        _check_scale(scale)
        _check_tile(tile)
        self.scale = scale
        self.tile = tile

    def log_entropy(self, features: Tensor) -> Tensor:
        """Return log H of every row, (B, HW), for features (B, C, H, W). No gradient flows through it."""
        return global_entropy(features.flatten(2), self.scale, self.tile)[0]

    def log_odds(self, features: Tensor) -> Tensor:
        """Return log(p / (1 - p)) of every row's largest probability p, (B, HW). No gradient flows through it.

        It also ranks rows whose p rounds to 1.
        """
        return global_entropy(features.flatten(2), self.scale, self.tile)[1]

    def rows(self, features: Tensor, queries: Tensor) -> Tensor:
        """Return the attention rows (B, N, HW) of the queries (B, N), with gradient."""
        return global_rows(at_least_float32(features).flatten(2), queries, self.scale)

    def route(self, features: Tensor, queries: Tensor, detach: bool = False) -> Route:
        """Return the route of these queries (B, N), made from the features (B, C, H, W)."""
        rows = self.rows(features.detach() if detach else features, queries)
        return AttentionRoute(rows, queries, features.shape[2:])


class LocalAttention:
    """Every position attends to the ``window`` x ``window`` positions around it, stride 1.

    Positions beyond the border are not keys: the softmax leaves them out.

    Args:
        window: side of the window, odd.
        scale: factor on the dot products; the paper's is 1.
    """

    def __init__(self, window: int = 7, scale: float = 1.0):
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window: must be odd and at least 1, got {window}")
        _check_scale(scale)
        self.window = window
        self.scale = scale

    def log_entropy(self, features: Tensor) -> Tensor:
        """Return log H of every window, (B, HW), for features (B, C, H, W). No gradient flows through it."""
        return local_entropy(features, self.window, self.scale)[0]

    def log_odds(self, features: Tensor) -> Tensor:
        """Return log(p / (1 - p)) of every window's largest probability p, (B, HW). No gradient flows through it."""
        return local_entropy(features, self.window, self.scale)[1]

    def rows(self, features: Tensor, queries: Tensor) -> Tensor:
        """Return the attention rows (B, N, window^2) of the windows around the queries (B, N), with gradient."""
        features = at_least_float32(features)
        keys, inside = gather_windows(features, queries, self.window)
        centre = gather_positions(features.flatten(2), queries)
        scores = self.scale * (centre.unsqueeze(-1) * keys).sum(dim=1)
        return scores.masked_fill(~inside, -torch.inf).softmax(dim=-1)

    def route(self, features: Tensor, queries: Tensor, detach: bool = False) -> Route:
        """Return the route of these queries (B, N), made from the features (B, C, H, W)."""
        rows = self.rows(features.detach() if detach else features, queries)
        return WindowRoute(rows, queries, features.shape[2:], self.window)


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"scale: must be positive, got {scale}")


def _check_tile(tile: int | None) -> None:
    if tile is not None and tile < 1:
        raise ValueError(f"tile: must be at least 1 row, got {tile}")

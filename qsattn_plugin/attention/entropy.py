"""The logarithm of a softmax row's entropy, exact where the row is saturated and cheap where it is long.

Self-similarity dominates a feature map's dot products: most rows of softmax(F F^T) put all but 1e-40 of their weight on
one position, and their entropy rounds to 0. It is therefore computed from sums without the row's largest entry. With
d_j = s_j - s_max over the other positions j, and L the largest of these d:

    r' = sum exp(d_j - L),   t' = -sum exp(d_j - L) d_j,   r = exp(L) r'
    log H = L + log(r' log1p(r) / r + t' / (1 + r))
    log(p_max / (1 - p_max)) = -log r = -(L + log r')

Scores are in base 2 (times log2(e), as the alpha of the matrix product), because exp2 is several times faster than exp
on a CPU. They are reduced by few in-place kernels, in tiles of rows and columns that fit the cache; the sums of a row's
tiles are merged. Under torch.compile the loops are custom operators: unrolled, they would compile for minutes, and the
precision of their matrix products could not be set.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.devices import is_compiling, no_autocast

__all__ = [
    "at_least_float32",
    "full_precision",
    "global_entropy",
    "local_entropy",
    "local_scores",
    "operator",
    "tile_entropy",
]

#: Replaces minus infinity where 0 * -inf would give NaN: exp2 of it is 0, and 0 times it is 0.
MASKED = -1e30

#: Bytes of scores in a tile, and rows: what fits the cache of a CPU core, and the memory of an accelerator.
CPU_TILE_BYTES, CPU_TILE_ROWS = 2 * 2**20, 256
TILE_BYTES, TILE_ROWS = 128 * 2**20, 4096

_LN2 = math.log(2.0)


def at_least_float32(features: Tensor) -> Tensor:
    """Return the features in float32; float64 features stay as they are."""
    return features if features.dtype == torch.float64 else features.float()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full float32, without autocast, TF32 or bf16, whatever the process allows."""
    cpu: Any = torch.backends.mkldnn  # torch puts an object in the place of this module
    by_backend = hasattr(torch.backends, "fp32_precision")  # from PyTorch 2.9 on
    backends = [torch.backends.cuda.matmul, cpu.matmul] if by_backend else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_autocast(device.type))
        for backend in backends:  # restoring the older setting would set both alike
            stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
        try:
            setting = torch.get_float32_matmul_precision()
        except RuntimeError:  # only the newer settings were used, which the older one cannot represent
            for backend in backends:
                backend.fp32_precision = "ieee"
        else:
            if setting != "highest":
                stack.callback(torch.set_float32_matmul_precision, setting)
                torch.set_float32_matmul_precision("highest")
        yield


def operator(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    keep: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes a function a custom operator, where torch has these (from 2.4 on).

    Elsewhere it stays a function, with the same gradient.

    Args:
        name: below ``qsattn_plugin::``.
        schema: types of the arguments and results.
        fake: returns empty results for the arguments.
        keep: ``keep(ctx, inputs, output)`` keeps what the gradient needs.
        backward: ``backward(ctx, grad)`` returns the gradients of the inputs.
    """

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        if hasattr(torch.library, "custom_op"):
            operator = torch.library.custom_op(f"qsattn_plugin::{name}", function, mutates_args=(), schema=schema)
            operator.register_fake(fake)
            if backward is not None:
                operator.register_autograd(backward, setup_context=keep)
            return operator
        if backward is None:
            return function
        parts: dict[str, Any] = {"forward": function, "setup_context": keep, "backward": backward}
        made: Any = type(name, (torch.autograd.Function,), {k: staticmethod(v) for k, v in parts.items()})
        return made.apply

    return make


def global_entropy(features: Tensor, scale: float, tile: int | None) -> tuple[Tensor, Tensor]:
    """Return log H and the log-odds of the largest probability of each row of softmax(scale F F^T), F (B, C, M).

    Both are (B, M).
    """
    features = at_least_float32(features.detach())
    return (_global_entropy_op if is_compiling() else _global_entropy)(features, scale, tile or 0)


def local_entropy(features: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return log H and the log-odds of the largest probability within the windows of features (B, C, H, W).

    Both are (B, HW). Any number of spatial dimensions.
    """
    features = at_least_float32(features.detach())
    return (_local_entropy_op if is_compiling() else _local_entropy)(features, window, scale)


def _global_entropy(features: Tensor, scale: float, tile: int) -> tuple[Tensor, Tensor]:
    batch, _, m = features.shape
    rows, columns = _tile_shape(m, tile, features)
    sums = features.new_empty(4, batch, m)
    parts = features.new_empty(4, -(-m // columns), rows, 1)
    scratch = features.new_empty(2, rows * columns)
    with full_precision(features.device):
        for b in range(batch):
            keys = features[b]
            for i in range(0, m, rows):
                queries = keys[:, i : i + rows].t()
                n = queries.shape[0]
                for c, some in enumerate(keys.split(columns, dim=1)):
                    scores, powers = scratch[:, : n * some.shape[1]].view(2, n, -1)
                    scores.addmm_(queries, some, beta=0, alpha=scale / _LN2)
                    _row_sums(scores, powers, parts[:, c, :n])
                sums[:, b, i : i + n] = _merge(parts[:, :, :n, 0])
    return _from_row_sums(sums)


def _local_entropy(features: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    scores = local_scores(features, window).mul_(scale / _LN2)
    batch, places, m = scores.shape
    scores = scores.clamp_(min=MASKED).transpose(1, 2).reshape(batch * m, places)
    sums = features.new_empty(4, batch * m, 1)
    _row_sums(scores, torch.empty_like(scores), sums)
    return _from_row_sums(sums.view(4, batch, m))


def _tile_shape(m: int, tile: int, features: Tensor) -> tuple[int, int]:
    """Return how many rows and columns of the m x m scores to hold at a time."""
    on_cpu = features.device.type == "cpu"
    scores = (CPU_TILE_BYTES if on_cpu else TILE_BYTES) // features.element_size()
    rows = min(m, tile or (CPU_TILE_ROWS if on_cpu else TILE_ROWS))
    return rows, min(m, max(1, scores // rows))


def _row_sums(scores: Tensor, powers: Tensor, sums: Tensor) -> None:
    """Reduce base-2 scores (T, M), which are overwritten, to sums (4, T, 1).

    The sums are the largest score, the second largest, and over all but the largest, with u = score - second largest:
    sum 2^u (which is r') and sum u 2^u (which is -(t' + L r'), in base 2).
    """
    largest, second, rest, weighted = sums
    place = _first_argmax(scores)
    torch.gather(scores, 1, place, out=largest)
    scores.scatter_(1, place, MASKED)
    torch.amax(scores, 1, keepdim=True, out=second)
    scores.sub_(second)
    torch.exp2(scores, out=powers)
    torch.sum(powers, 1, keepdim=True, out=rest)
    powers.mul_(scores)
    torch.sum(powers, 1, keepdim=True, out=weighted)


def tile_entropy(queries: Tensor, keys: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return log H of rows (T, C) over all keys (C, M), of operators alone that write nothing in place: for exports.

    The ``mask`` (T, M) is added to the scores: 0 where a row may attend, -inf elsewhere.
    """
    scores = (torch.matmul(queries, keys) * (scale / _LN2) + mask).clamp(min=MASKED)
    place = scores.argmax(-1, keepdim=True)
    others = scores.scatter(1, place, MASKED)
    second = others.amax(1, keepdim=True)
    others = others - second
    powers = others.exp2()
    sums = (scores.gather(1, place), second, powers.sum(1, keepdim=True), (powers * others).sum(1, keepdim=True))
    return _from_row_sums(torch.stack(sums))[0][:, 0]


def _first_argmax(scores: Tensor) -> Tensor:
    """Return the position (T, 1) of each row's first largest score.

    It is found by the maximum of blocks and then within one block: on a CPU amax is vectorised, argmax is not.
    """
    t, m = scores.shape
    block = next((b for b in range(math.isqrt(m), 1, -1) if m % b == 0), m)
    blocks = scores.view(t, m // block, block)
    which = blocks.amax(-1).argmax(-1, keepdim=True)
    inside = blocks.gather(1, which.unsqueeze(-1).expand(t, 1, block)).squeeze(1).argmax(-1, keepdim=True)
    return which.mul_(block).add_(inside)


def _merge(parts: Tensor) -> Tensor:
    """Return the row sums (4, T) of rows whose columns were reduced in parts (4, parts, T).

    The sums of each part lack its own largest entry; all of these but the row's largest are added here.
    """
    if parts.shape[1] == 1:
        return parts[:, 0]
    largest, second, rest, weighted = parts
    first, place = largest.max(dim=0, keepdim=True)
    others = largest.scatter(0, place, MASKED)
    after = torch.maximum(others.amax(0), second.amax(0))
    others, second = others - after, second - after
    back, power = others.exp2(), second.exp2()
    weights = (back * others + power * (weighted + rest * second)).sum(0)
    return torch.stack((first[0], after, (back + power * rest).sum(0), weights))


def _from_row_sums(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return log H and log(p / (1 - p)), natural logarithms, from the row sums (4, ...)."""
    largest, second, rest, weighted = sums
    apart = _LN2 * (second - largest)  # L
    r = apart.exp() * rest
    ratio = torch.where(r < torch.finfo(r.dtype).eps, 1.0, r.log1p() / r)
    log_entropy = apart + (rest * ratio + (-_LN2 * weighted - apart * rest) / (1 + r)).log()
    alone = second <= MASKED / 2  # a row with a single key: its probability is 1, its entropy 0
    return log_entropy.masked_fill_(alone, -torch.inf), -(apart + rest.log()).masked_fill_(alone, -torch.inf)


def local_scores(features: Tensor, window: int) -> Tensor:
    """Return the dot products (B, window^2, HW) of every position with those in its window; -inf beyond the border.

    Positions are counted row by row; the features may have any number n of spatial dimensions, and windows then have
    window^n places. The product of two positions is computed once, for both windows.
    """
    sizes = features.shape[2:]
    places = window ** len(sizes)
    scores = features.new_full((features.shape[0], places, *sizes), -torch.inf)
    offsets = itertools.product(range(window // 2, -(window // 2) - 1, -1), repeat=len(sizes))
    # Offset d is that of a position from the earlier one that it meets at this place of its window. The second half of
    # the places is the first half seen from the earlier position.
    for place, offset in enumerate(itertools.islice(offsets, places // 2 + 1)):
        if any(abs(d) >= size for d, size in zip(offset, sizes, strict=True)):
            continue
        both = list(zip(offset, sizes, strict=True))
        later: tuple[Any, ...] = (..., *(slice(max(d, 0), size + min(d, 0)) for d, size in both))
        earlier: tuple[Any, ...] = (..., *(slice(max(-d, 0), size - max(d, 0)) for d, size in both))
        products = (features[later] * features[earlier]).sum(1)
        scores[:, place][later] = products
        scores[:, places - 1 - place][earlier] = products
    return scores.flatten(2)


def _two_by_position(features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], features.shape[2:].numel())
    return features.new_empty(shape), features.new_empty(shape)


_global_entropy_op, _local_entropy_op = (
    operator(name, f"(Tensor features, {arguments}) -> (Tensor, Tensor)", _two_by_position)(function)
    for name, arguments, function in (
        ("global_entropy", "float scale, int tile", _global_entropy),
        ("local_entropy", "int window, float scale", _local_entropy),
    )
)

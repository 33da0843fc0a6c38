"""The logarithm of a softmax row's entropy, exact where the row is saturated and cheap where it is long.

Self-similarity dominates a feature map's dot products: most rows of softmax(F F^T) put all but 1e-40 of their weight on
one place, and their entropy rounds to 0. So it is computed from sums that leave the row's largest entry out. With
d_j = s_j - s_max over the other places j, and L the largest of these d:

    r' = sum exp(d_j - L),   t' = -sum exp(d_j - L) d_j,   r = exp(L) r'
    log H = L + log(r' log1p(r) / r + t' / (1 + r))
    log(p_max / (1 - p_max)) = -log r = -(L + log r')

Scores are held in base 2 (times log2(e), free as the matrix product's alpha), as exp2 is several times faster than exp
on a CPU, and pass through few in-place kernels, in tiles of rows and columns that fit the cache; what the tiles of a
row leave is merged. Under torch.compile the loops stay whole, as custom operators: unrolled, they would compile for
minutes, and the precision of their matrix products could not be set.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["full_precision", "local_scores", "log_form_global", "log_form_local", "wide"]

#: Stands for minus infinity where 0 * -inf must not appear: exp2 of it is 0, and 0 times it is 0.
NEVER = -1e30

#: Bytes of scores in a tile: what the cache of a CPU core holds, and what an accelerator spares.
CPU_TILE_BYTES, CPU_TILE_ROWS = 2 * 2**20, 256
TILE_BYTES, TILE_ROWS = 128 * 2**20, 4096

_LN2 = math.log(2.0)


def wide(features: Tensor) -> Tensor:
    """Return the features in float32, or in float64 if that is what they are."""
    return features if features.dtype == torch.float64 else features.float()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in real float32: neither autocast nor TF32 nor bf16, whatever the process allows."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn
    with contextlib.ExitStack() as stack:
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        for backend in (cuda, cpu.matmul):  # the older setting, put back, would set both alike
            stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
        try:
            setting = torch.get_float32_matmul_precision()
        except RuntimeError:  # set through the newer settings alone, of which the older know nothing
            cuda.fp32_precision = cpu.matmul.fp32_precision = "ieee"
        else:
            if setting != "highest":
                stack.callback(torch.set_float32_matmul_precision, setting)
                torch.set_float32_matmul_precision("highest")
        yield


def log_form_global(features: Tensor, scale: float, tile: int | None) -> tuple[Tensor, Tensor]:
    """Return log H and the largest probability's log-odds, (B, M) each, of softmax(scale F F^T); F is (B, C, M)."""
    features = wide(features.detach())
    compiled = torch.compiler.is_compiling()
    return (_log_form_global_op if compiled else _log_form_global)(features, scale, tile or 0)


def log_form_local(features: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return log H and the largest probability's log-odds, (B, HW) each, within windows of features (B, C, H, W)."""
    features = wide(features.detach())
    compiled = torch.compiler.is_compiling()
    return (_log_form_local_op if compiled else _log_form_local)(features, window, scale)


def _log_form_global(features: Tensor, scale: float, tile: int) -> tuple[Tensor, Tensor]:
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
    return _finish(sums)


def _log_form_local(features: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    scores = local_scores(features, window).mul_(scale / _LN2)
    batch, places, m = scores.shape
    scores = scores.clamp_(min=NEVER).transpose(1, 2).reshape(batch * m, places)
    sums = features.new_empty(4, batch * m, 1)
    _row_sums(scores, torch.empty_like(scores), sums)
    return _finish(sums.view(4, batch, m))


def _tile_shape(m: int, tile: int, features: Tensor) -> tuple[int, int]:
    """Return how many rows and columns of the m x m scores to hold at a time."""
    on_cpu = features.device.type == "cpu"
    scores = (CPU_TILE_BYTES if on_cpu else TILE_BYTES) // features.element_size()
    rows = min(m, tile or (CPU_TILE_ROWS if on_cpu else TILE_ROWS))
    return rows, min(m, max(1, scores // rows))


def _row_sums(scores: Tensor, powers: Tensor, sums: Tensor) -> None:
    """Reduce base-2 scores (T, M), which are overwritten, to sums (4, T, 1).

    They are the largest score, the second largest, and over all but the largest, with u = score - second largest:
    sum 2^u (which is r') and sum u 2^u (which is -(t' + L r'), in base 2).
    """
    largest, second, rest, weighted = sums
    place = _first_argmax(scores)
    torch.gather(scores, 1, place, out=largest)
    scores.scatter_(1, place, NEVER)
    torch.amax(scores, 1, keepdim=True, out=second)
    scores.sub_(second)
    torch.exp2(scores, out=powers)
    torch.sum(powers, 1, keepdim=True, out=rest)
    powers.mul_(scores)
    torch.sum(powers, 1, keepdim=True, out=weighted)


def _first_argmax(scores: Tensor) -> Tensor:
    """Return the position (T, 1) of each row's first largest score.

    The maximum of blocks and then the position among few: a CPU's argmax is not vectorised, its amax is.
    """
    t, m = scores.shape
    block = next((b for b in range(math.isqrt(m), 1, -1) if m % b == 0), m)
    blocks = scores.view(t, m // block, block)
    which = blocks.amax(-1).argmax(-1, keepdim=True)
    inside = blocks.gather(1, which.unsqueeze(-1).expand(t, 1, block)).squeeze(1).argmax(-1, keepdim=True)
    return which.mul_(block).add_(inside)


def _merge(parts: Tensor) -> Tensor:
    """Return the row sums (4, T) of rows whose columns were reduced in parts (4, parts, T).

    Each part left its own largest entry out; all of these but the row's largest are put back.
    """
    if parts.shape[1] == 1:
        return parts[:, 0]
    largest, second, rest, weighted = parts
    first, place = largest.max(dim=0, keepdim=True)
    others = largest.scatter(0, place, NEVER)
    after = torch.maximum(others.amax(0), second.amax(0))
    others, second = others - after, second - after
    back, power = others.exp2(), second.exp2()
    weights = (back * others + power * (weighted + rest * second)).sum(0)
    return torch.stack((first[0], after, (back + power * rest).sum(0), weights))


def _finish(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return log H and log(p / (1 - p)) from the row sums (4, ...), natural logarithms."""
    largest, second, rest, weighted = sums
    apart = _LN2 * (second - largest)  # L
    r = apart.exp() * rest
    ratio = torch.where(r < torch.finfo(r.dtype).eps, 1.0, r.log1p() / r)
    log_entropy = apart + (rest * ratio + (-_LN2 * weighted - apart * rest) / (1 + r)).log()
    alone = second <= NEVER / 2  # the row has one key: its probability is 1, its entropy 0
    return log_entropy.masked_fill_(alone, -torch.inf), -(apart + rest.log()).masked_fill_(alone, -torch.inf)


def local_scores(features: Tensor, window: int) -> Tensor:
    """Return the dot products (B, window^2, HW) of every position with its window's places; -inf beyond the border.

    Places are counted row by row. The product of two positions is computed once for both their windows.
    """
    batch, _, height, width = features.shape
    half = window // 2
    scores = features.new_full((batch, window * window, height, width), -torch.inf)
    for place in range(window * window // 2 + 1):
        dy, dx = half - place // window, half - place % window  # the earlier of the two lies (dy, dx) before the later
        if dy >= height or abs(dx) >= width:
            continue
        later = (slice(dy, height), slice(max(dx, 0), width + min(dx, 0)))
        earlier = (slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
        products = (features[(..., *later)] * features[(..., *earlier)]).sum(1)
        scores[(slice(None), place, *later)] = products
        scores[(slice(None), window * window - 1 - place, *earlier)] = products
    return scores.flatten(2)


_log_form_global_op = torch.library.custom_op("qsattn_plugin::log_form_global", _log_form_global, mutates_args=())
_log_form_local_op = torch.library.custom_op("qsattn_plugin::log_form_local", _log_form_local, mutates_args=())


@_log_form_global_op.register_fake
def _(features, scale, tile):
    shape = (features.shape[0], features.shape[2])
    return features.new_empty(shape), features.new_empty(shape)


@_log_form_local_op.register_fake
def _(features, window, scale):
    shape = (features.shape[0], features.shape[2] * features.shape[3])
    return features.new_empty(shape), features.new_empty(shape)

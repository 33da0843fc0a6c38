"""Let a fork's own function do all of its work, and answer only where it gathers features at ids.

The function is given ids that are marked. A mode of torch sees every operation in it; where features are indexed by
marked ids, a route gathers instead. So what the function does before (space to depth, a normalisation, a change of the
channels) and after (its MLPs, noise) is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qsattn_plugin.attention.routes import Route
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.ids import kept, with_keeping

__all__ = ["Gathering", "Place"]


class Place:
    """Marks the ids of one feature map.

    Attributes:
        index: the map's index.
        features: what the function gathered from, (B, C, H, W); None until then.
        route: gathers; None until it is chosen.
    """

    def __init__(self, index: int, route: Route | None = None):
        self.index = index
        self.features: Tensor | None = None
        self.route = route

    def mark(self, ids: Tensor) -> Tensor:
        """Return the ids, marked as those of this place."""
        return with_keeping(ids, self)


class Gathering(TorchFunctionMode):
    """While it is entered, features that are indexed by the marked ids of a place are gathered by its route.

    Args:
        maps: the feature maps that the function was called with.
        choose: ``choose(index, features)`` returns the route of a map at its first gathering.
    """

    def __init__(self, maps: Sequence[Tensor], choose: Callable[[int, Tensor], Route]):
        super().__init__()
        self.maps = maps
        self.choose = choose

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "index_select", "gather", "take_along_dim"):
            features, dim, place = _indexed(name, *args, **kwargs)
            if place is not None:
                return self._gather(features, dim, place)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not result.is_floating_point():
            place = next((p for p in map(place_of, args) if p is not None), None)
            if place is not None and place_of(result) is None:
                place.mark(result)  # a copy of marked ids, on another device or of another type
        return result

    def _gather(self, features: Tensor, dim: int, place: Place) -> Tensor:
        batch = self.maps[place.index].shape[0]
        # (B, M, C), (B, C, M), or (M, C) of a single image: to (B, C, M)
        form = features.ndim, dim % features.ndim
        if form not in ((3, 1), (3, 2), (2, 0)) or (features.shape[0] if features.ndim == 3 else 1) != batch:
            raise UserError(
                f"inside=True: the fork's sampler gathers feature map {place.index} from a tensor of "
                f"{' x '.join(map(str, features.shape))} along dimension {form[1]}; only (B, positions, channels), "
                "(B, channels, positions) and, for one image, (positions, channels) are understood"
            )
        last = form[1] == 2  # (B, C, M)
        flat = features.t().unsqueeze(0) if features.ndim == 2 else features if last else features.transpose(1, 2)
        sizes = self.maps[place.index].shape[2:] if place.route is None else place.route.shape
        whole = flat.unflatten(2, _sizes(flat.shape[2], sizes))
        if place.route is None:
            place.route = self.choose(place.index, whole)
        place.features = whole
        rows = place.route(whole).to(features.dtype)  # (B, N, C)
        return rows[0] if features.ndim == 2 else rows.transpose(1, 2) if last else rows


def _indexed(name: str, features: Any, *args: Any, **kwargs: Any) -> tuple[Any, int, Place | None]:
    """Return what is indexed, along which dimension, and the place of the ids; None for ids that are not marked."""
    if name == "__getitem__":
        index = args[0] if isinstance(args[0], tuple) else (args[0],)
        found = [(dim, place_of(i)) for dim, i in enumerate(index)]
        marked = [(dim, place) for dim, place in found if place is not None]
        whole = all(isinstance(i, slice) and i == slice(None) for i in index if place_of(i) is None)
        return (features, *marked[0]) if len(marked) == 1 and whole else (features, 0, None)
    names = ("indices", "dim") if name == "take_along_dim" else ("dim", "index")
    values = dict(zip(names, args, strict=False)) | kwargs
    ids = values.get("index", values.get("indices"))
    return features, values.get("dim") or 0, place_of(ids)


def place_of(ids: Any) -> Place | None:
    """Return the place that marked ids belong to; None for anything else."""
    found = kept(ids) if isinstance(ids, Tensor) else None
    return found if isinstance(found, Place) else None


def _sizes(count: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial sizes of a map of ``count`` positions that was made from one of these sizes.

    Raises:
        UserError: they are not those sizes, scaled by one factor.
    """
    scale = (count / torch.Size(sizes).numel()) ** (1 / len(sizes))
    scaled = tuple(round(size * scale) for size in sizes)
    if torch.Size(scaled).numel() != count:
        raise UserError(
            f"inside=True: the fork's sampler makes {count} positions of a map of {' x '.join(map(str, sizes))}; their "
            "height and width cannot be told from that"
        )
    return scaled

"""The patch ids that a fork gets: LongTensors of the selected positions that carry their route.

A CUT fork calls its sampler twice and passes the ids of the first call to the second. The second call may be to another
module, or on another domain's features, so the route must travel with the ids. It belongs to the *storage* of the ids,
not to the tensor: views share the storage, and so do the ids that ``DataParallel`` passes on one device. A copy (on
another device, as numpy) has another storage and no route: then only the positions are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from qsattn_plugin.attention.routes import Route, by
from qsattn_plugin.errors import UserError

__all__ = ["kept", "positions", "route_of", "with_keeping", "with_route"]

#: The attribute of an ids' storage that holds their route.
ROUTE = "_qsattn_route"

_probe = torch.empty(1)
setattr(_probe.untyped_storage(), ROUTE, True)
#: Whether a storage is the same object each time that it is asked for. In PyTorch 2.1 it is not, and has no attributes.
LASTING = hasattr(_probe.untyped_storage(), ROUTE)

#: Where it is not: what belongs to a storage. The weak reference keeps its address from being used again.
_kept: dict[StorageWeakRef, Any] = {}


def with_keeping(ids: Tensor, value: Any) -> Tensor:
    """Return the ids; their storage now holds the value, as long as it lives.

    Where storages have no attributes, it may live until the next ids are made.
    """
    if LASTING:
        setattr(ids.untyped_storage(), ROUTE, value)
    else:
        for gone in [storage for storage in _kept if storage.expired()]:
            del _kept[gone]
        _kept[StorageWeakRef(ids.untyped_storage())] = value
    return ids


def kept(ids: Tensor) -> Any:
    """Return what the storage of the ids holds; None where that is nothing."""
    storage = ids.untyped_storage()
    return getattr(storage, ROUTE, None) if LASTING else _kept.get(StorageWeakRef(storage))


def with_route(route: Route) -> Tensor:
    """Return the route's positions as a LongTensor that carries it: (N,) for one image, (B, N) for several."""
    # A copy: the route holds its queries, and as an attribute of their storage it would keep itself alive for ever.
    ids = with_keeping(route.queries.clone(memory_format=torch.contiguous_format), route)
    return ids[0] if ids.shape[0] == 1 else ids


def route_of(ids: Any) -> Route | None:
    """Return the route that the ids carry; None for ids of others, for a copy and for a part of ours."""
    if not isinstance(ids, Tensor):
        return None
    route = kept(ids)
    whole = isinstance(route, Route) and ids.numel() == route.queries.numel() and ids.is_contiguous()
    return route if whole else None


def positions(ids: Any, features: Tensor) -> Tensor:
    """Return ids (tensor, array, list, or one list per image) as positions (B, N) of features (B, C, H, W).

    Raises:
        UserError: they are not positions, or not positions of these features.
    """
    batch, sizes = features.shape[0], features.shape[2:]
    try:
        if isinstance(ids, Sequence) and ids and isinstance(ids[0], Tensor):
            ids = torch.stack(list(ids))
        found = torch.as_tensor(ids, device=features.device).long()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"patch ids must be integers, the same number for each image; got {type(ids).__name__}"
        ) from None
    shape = tuple(found.shape)
    if found.ndim == 1:
        found = found.unsqueeze(0)
    if found.ndim != 2 or found.shape[1] == 0 or found.shape[0] not in (1, batch):
        raise UserError(f"patch ids of shape {shape} do not fit features of shape {tuple(features.shape)}")
    low, high = found.aminmax()
    if low < 0 or high >= sizes.numel():
        raise UserError(
            f"patch ids go from {int(low)} to {int(high)}, but the features have {by(sizes)} positions: "
            "the fork must sample features of the same size in both calls"
        )
    return found.expand(batch, -1)

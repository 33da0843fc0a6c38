"""Features of pictures by a network of one's choice: the protocol, how one is found by name, and how it is asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qsattn_plugin.data.images import show
from qsattn_plugin.errors import UserError, describe_error, nearest
from qsattn_plugin.evaluation.pictures import Pictures
from qsattn_plugin.registry.recipe.imports import import_file


class Extractor(Protocol):
    """Features of pictures.

    ``extractor(images)`` takes uint8 (B, 3, H, W), on the CPU, RGB, of any size, and returns the features by name,
    usually their width: ``{"64": (B, 64), "768": (B, 768)}``, of floating point, on any device. Resizing is its own
    affair; if it has a text ``resize``, that says how, and goes into the report.
    """

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class FeatureSets:
    """Features of the scored and of the real pictures, for metrics that compare the two sets.

    ``published`` is whether they are of the network that FIDs are published with, so that torch-fidelity's own formulas
    judge them. Those of :mod:`qsattn_plugin.distances` give the same numbers and need nothing installed.
    """

    scored: dict[str, Tensor]  # (N, D) on the CPU for each layer, by its name
    real: dict[str, Tensor]  # (M, D) for the same layers
    images: dict[str, int]  # how many pictures there are: {"scored": N, "real": M}
    resize: str  # what was done to the pictures' sizes
    settings: dict[str, Any]  # what else the features depend on, for the report
    published: bool = False


#: Makes an extractor: ``factory(weights, device)``, weights the path of a file as text, or None.
Factory = Callable[[str | None, torch.device], Extractor]


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Return the extractor that a :data:`Factory`, ``module:callable`` or ``file.py:callable``, makes.

    Modules are looked for in the current directory, too.

    Raises:
        UserError: there is no such module, callable or weights file, or it failed.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"an extractor is named module:callable or file.py:callable, not {name!r}")
    if weights is not None and not weights.is_file():
        raise UserError(f"there is no file {show(weights)} with the extractor's weights")
    with _current_directory():
        module = _import(place)
        if not hasattr(module, attribute):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise UserError(f"{place} has no {attribute!r}{nearest(attribute, known)}")
        factory = getattr(module, attribute)
        if not callable(factory):
            raise UserError(f"{name} cannot be called; an extractor is made by calling it with (weights, device)")
        try:
            extractor = factory(None if weights is None else str(weights), device)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name}(weights, device) failed: {describe_error(error)}") from error
    if not callable(extractor):
        raise UserError(f"{name}(weights, device) must return something to be called with pictures, got {extractor!r}")
    return extractor


@contextlib.contextmanager
def _current_directory() -> Iterator[None]:
    """Let modules be imported from the current directory."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _import(place: str) -> object:
    is_file = place.endswith(".py") or "/" in place
    if is_file and not Path(place).is_file():
        raise UserError(f"there is no file {place} to make the extractor")
    here = os.getcwd()
    try:
        if not is_file:
            return importlib.import_module(place)
        return import_file(Path(here, place))
    except ModuleNotFoundError as error:
        if not f"{place}.".startswith(f"{error.name}."):
            raise UserError(f"importing {place} failed: {describe_error(error)}") from error
        what = f"there is no module {error.name!r} for the extractor {place}"
        raise UserError(f"{what}, neither installed nor in {show(here)}") from error
    except Exception as error:
        raise UserError(f"importing {place} failed: {describe_error(error)}") from error


def extract(
    extractor: Extractor,
    pictures: Pictures,
    wanted: tuple[str, ...] | None = None,
    batch: int = 8,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """Return the features of N pictures, by name, each (N, D), float32 or float64 as they came, on the CPU.

    Only those ``wanted`` are returned, in this order; ``done`` is called with how many pictures were dealt with.

    Raises:
        UserError: a feature that is wanted is not there, or what came back is not (B, D) or not finite.
    """
    parts: dict[str, list[Tensor]] = {}
    for images in pictures.batches(batch, done):
        found = {str(name): value for name, value in extractor(images).items()}
        for name in found if wanted is None else wanted:
            if name not in found:
                near = nearest(name, found)
                raise UserError(f"the extractor has no features {name!r}{near} (it has {', '.join(found)})")
            parts.setdefault(name, []).append(_checked(name, found[name], len(images)))
    return {name: torch.cat(some) for name, some in parts.items()}


def _checked(name: str, features: Tensor, count: int) -> Tensor:
    if features.ndim != 2 or len(features) != count or not features.is_floating_point():
        got = f"{features.dtype} {tuple(features.shape)}"
        raise UserError(f"the extractor's features {name!r} must be floats ({count}, D), got {got}")
    features = features.detach().cpu()
    features = features if features.dtype == torch.float64 else features.float()
    if not features.isfinite().all():
        raise UserError(f"the extractor's features {name!r} hold values that are not finite")
    return features

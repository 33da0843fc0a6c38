"""What a map or a measurement looks at: the features of a trained model, or of a timm network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.devices import pick_device
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import PartError, create, find
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.samplers import AttendsNowhere
from qsattn_plugin.storage import DamagedFile, load_tensors
from qsattn_plugin.translation.apply import pad_for
from qsattn_plugin.translation.load import load
from qsattn_plugin.translation.translator import Translator

#: What ``model`` begins with to mean a timm network rather than a trained model.
TIMM = "timm:"


@dataclass
class FeatureSource:
    """An encoder, with what is known of it."""

    generator: nn.Module | None  # that the encoder belongs to, if there is one
    encoder: Any
    channels: int  # of the images it takes
    sampler: dict[str, Any]  # of the model's recipe ({"type": ..., ...}), or an empty mapping
    taps: tuple[Any, ...]  # that the recipe's sampler attends to, or else the deepest
    trained: int | None = None  # the shorter side that pictures had in training; None: unknown
    translator: Translator | None = None  # that reads its pictures; None: they are read in 8 bits

    def sees(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return images (B, C, H, W) as the encoder sees them, and height and width of the pictures in that.

        They are padded for the generator, or of the one size that the encoder takes.
        """
        if getattr(self.encoder, "fixed_size", None):
            images = whole = self.encoder.resized(images)
        else:
            whole = pad_for(self.generator, images)
        return whole, (images.shape[-2], images.shape[-1])

    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, tuple[Tensor, int]]:
        """Return, by tap, the features (B, C, h, w) of images (B, C, H, W) in [-1, 1], and the tap's stride."""
        found = self.encoder.features(self.generator, images)
        encoder = self.encoder
        return {str(t): (f, s) for t, f, s in zip(encoder.taps, found, encoder.strides, strict=True)}


def feature_source(
    model: str | Path,
    taps: tuple[str, ...] | str = (),
    device: torch.device | str = "cpu",
    weights: str | Path | None = None,
    translator: Translator | None = None,
) -> FeatureSource:
    """Open a model for a look at its features.

    The model is as for :func:`qsattn_plugin.translation.load.load`, or ``timm:NAME`` for a pretrained timm network, if
    need be with a file of weights; ``translator`` is the model if it is loaded already. ``taps`` are the layers wanted,
    by index or name; without any, those that the model was trained with.

    Raises:
        UserError: no such model, tap or file.
    """
    model, taps, device = str(model), (taps,) if isinstance(taps, str) else taps, pick_device(str(device))
    if weights is not None and not model.startswith(TIMM):
        raise UserError(f"weights from a file of their own are for {TIMM}NAME; {model} comes with its own")
    if model.startswith(TIMM):
        indices = tuple(_timm_tap(tap) for tap in taps) or None
        trained = {"pretrained": True} if weights is None else {"weights": Path(weights)}
        encoder = create("encoder", "timm", model=model.removeprefix(TIMM), taps=indices, **trained)
        return FeatureSource(None, encoder.to(device).eval(), 3, {}, tuple(taps) or (encoder.taps[-1],))
    translator = translator or load(model, device)
    assert translator.weights is not None  # it was loaded
    path = translator.weights.path
    generator, document = translator.generator, translator.document
    recipe = document.get("recipe") or {}
    spec = {"type": "generator", **(recipe.get("encoder") or {})}
    sampler = dict(recipe.get("sampler") or {})
    if spec["type"] == "generator":
        try:
            find("encoder", "generator").check_values({key: spec[key] for key in ("taps",) if key in spec})
        except PartError as error:
            raise DamagedFile(f"{path}: {error}") from error
        wanted = tuple(taps) or spec.get("taps")
        encoder = create("encoder", "generator", taps=wanted and tuple(wanted), generator=generator)
    else:
        whole = Recipe.from_dict(recipe, str(path))
        encoder = whole.build("encoder", generator=generator, in_channels=translator.channels, size=whole.data.crop)
        if getattr(encoder, "saved", True):
            _take_weights(encoder, path)
        known = [str(tap) for tap in encoder.taps]
        for tap in taps:
            if tap not in known:
                raise UserError(f"the model was trained without tap {tap}{nearest(tap, known)} ({', '.join(known)})")
    encoder = encoder.to(device).eval()
    source = FeatureSource(generator, encoder, translator.channels, sampler, (), translator.trained, translator)
    if taps:
        source.taps = tuple(encoder.taps) if spec["type"] == "generator" else tuple(taps)
    else:
        data = recipe.get("data") or {}
        crop = data.get("crop") if str(data.get("preprocess")).endswith("crop") else None
        source.taps = _attentive(source, crop or translator.trained or 256, device)
    return source


def attends(sampler: str) -> bool:
    """Tell whether a sampler can be told where to attend."""
    return "taps" in find("sampler", sampler).signature.parameters


def _attentive(source: FeatureSource, side: int, device: torch.device | str) -> tuple[Any, ...]:
    """Return the taps that the recipe's sampler attends to on images of the training's size, or else the deepest."""
    deepest, spec = (source.encoder.taps[-1],), dict(source.sampler)
    try:
        if not attends(kind := spec.pop("type", "random")):
            return deepest
        sampler = create("sampler", kind, **spec)
    except (PartError, ValueError):  # of a part that is not at hand, say; which one is shown is chosen later
        return deepest
    features = source.features(source.sees(torch.zeros(1, source.channels, side, side, device=device))[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttendsNowhere)
        flags = sampler.attentive([f for f, _ in features.values()], list(features))
    return tuple(tap for tap, flag in zip(source.encoder.taps, flags, strict=True) if flag) or deepest


def _take_weights(encoder: nn.Module, path: Path) -> None:
    """Give an encoder its weights from a checkpoint, all of them: others would show another map."""
    tensors, _ = load_tensors(path, "model/encoder.")
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not hold the weights of the encoder that its recipe names; a run's folder or checkpoint "
            "does, where its method keeps the encoder as `encoder`"
        ) from error


def _timm_tap(tap: str) -> int:
    if not tap.isdigit():
        raise UserError(f"taps of a timm network are numbers, got {tap!r}")
    return int(tap)

"""Entropy maps of picture files, written beside each other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.data.images import UnreadableImage, normalise_mode, read_first, write_image
from qsattn_plugin.data.pixels import to_channels, to_float
from qsattn_plugin.data.preprocess import resize_bands
from qsattn_plugin.devices import pick_device
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.maps import EntropyMap, Scale, entropy_map
from qsattn_plugin.evaluation.sources import FeatureSource, attends, feature_source
from qsattn_plugin.registry import PartError, create, find
from qsattn_plugin.storage import WriteFailed, write_text
from qsattn_plugin.translation.files import plan
from qsattn_plugin.translation.job import FATAL
from qsattn_plugin.translation.sizes import At, resize_picture, resize_raster, working_size


def draw_maps(
    images: Iterable[str | Path],
    model: str | Path,
    out: Path,
    *,
    taps: tuple[str, ...] | str = (),
    sampler: str | None = None,
    options: dict[str, Any] | None = None,
    scale: Scale = "rank",
    size: int | None = None,
    at: At | None = None,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    failed: list[tuple[Path, str]] | None = None,
) -> list[tuple[Path, Path]]:
    """Write ``NAME-tap-T.png`` and ``.json`` into a folder for every picture and tap; return their paths.

    Args:
        images: files, folders or patterns.
        model: see :func:`~qsattn_plugin.evaluation.sources.feature_source`, for ``weights`` too.
        out: the folder.
        taps: layers; the attentive ones of the model without any.
        sampler: a registered sampler's name; the model's own without it, or ``qsattn_global`` if that is not attentive.
        options: arguments over the sampler's own, such as ``queries``.
        scale: how entropies become colours, see :meth:`~qsattn_plugin.evaluation.maps.EntropyMap.warmth`.
        size: the shorter side in pixels to which pictures are resized first.
        at: the size at which the model sees them, as for translations; positions are given in the picture's own pixels.
        failed: is given (picture, reason) for every picture that cannot be read, or whose map cannot be written;
            without it, the first one raises.

    Raises:
        UserError: no such picture, model, tap or sampler.
    """
    device = pick_device(str(device))
    source = feature_source(model, taps, device, weights)
    chooser = choose_sampler(source, sampler, options or {})
    written = []

    def places(target: Path) -> list[Path]:
        return [target.with_name(f"{target.stem}-tap-{tap}.png") for tap in map(str, source.taps)]

    def draw(path: Path, target: Path) -> None:
        found = _maps(source, chooser, *_images(path, source, size, at), device)
        bands = source.translator.bands if source.translator is not None else None
        for (tap, one), place in zip(found.items(), places(target), strict=True):
            write_image(one.draw(scale, bands), place)
            numbers = {"image": str(path), "model": str(model), "tap": tap, "scale": scale, **one.numbers()}
            write_text(place.with_suffix(".json"), json.dumps(numbers) + "\n")
            written.append((place, place.with_suffix(".json")))

    for path, target in plan(images, out, kept=(), files=places):
        try:
            draw(path, target)
        except (UnreadableImage, WriteFailed) as error:
            if getattr(error.__cause__, "errno", None) in FATAL:
                raise
            reason = error.reason if isinstance(error, UnreadableImage) else str(error)
            if failed is None:
                raise UnreadableImage(reason, path) from None
            failed.append((path, str(UnreadableImage(reason, path))))
    return written


def entropy_maps(
    picture: Image.Image | str | Path,
    model: str | Path,
    taps: tuple[str, ...] | str = (),
    *,
    sampler: str | None = None,
    options: dict[str, Any] | None = None,
    at: At | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, EntropyMap]:
    """Return the entropy map of a picture, or picture file, by tap; the arguments are :func:`draw_maps`'s.

    Raises:
        UnreadableImage: the file cannot be read, or the model makes no numbers of it.
        UserError: no such model, tap or sampler.
    """
    device = pick_device(str(device))
    source = feature_source(model, taps, device)
    return _maps(source, choose_sampler(source, sampler, options or {}), *_images(picture, source, None, at), device)


def _images(
    picture: Image.Image | str | Path, source: FeatureSource, size: int | None, at: At | None
) -> tuple[Tensor, Tensor]:
    """Return a picture, and the same at the size at which the model sees it, (C, H, W) in [-1, 1]."""
    if isinstance(picture, Image.Image) and source.translator is not None:
        source.translator.check_eight_bits()
    if isinstance(picture, Image.Image) or source.translator is None or source.translator.ranges[0] is None:
        picture = normalise_mode(picture) if isinstance(picture, Image.Image) else read_first(picture)
        picture = picture if size is None else resize_picture(picture, size)
        seen = resize_picture(picture, working_size(picture.size, at, source.trained))
        return to_float(to_channels(picture, source.channels)), to_float(to_channels(seen, source.channels))
    read: Any = source.translator.read(Path(picture))  # a raster, as its model has a range
    raster = read if size is None else resize_raster(read, size)
    image, small = source.translator.signal(raster), working_size(raster.size, at, source.trained)
    return image, image if small == raster.size else resize_bands(image, small).clamp_(-1, 1)


def _maps(
    source: FeatureSource, chooser: Any, image: Tensor, small: Tensor, device: torch.device | str
) -> dict[str, EntropyMap]:
    """Return the entropy maps of what :func:`_images` returns, by tap."""
    whole, seen = source.sees(small[None].to(device))
    features = source.features(whole)
    if not all(maps.isfinite().all() for maps, _ in features.values()):
        raise UnreadableImage("the model produced NaN or infinite values")
    found = {}
    for tap in map(str, source.taps):
        maps, stride = features[tap]
        draws = torch.Generator().manual_seed(0)
        found[tap] = entropy_map(image, maps, chooser, stride, draws, (whole.shape[-2], whole.shape[-1]), seen)
    return found


def choose_sampler(source: FeatureSource, name: str | None, options: dict[str, Any]) -> Any:
    """Return the sampler to show: ``name``, or the model's own if it is attentive, or ``qsattn_global``."""
    spec = dict(source.sampler)
    own = spec.pop("type", "random")
    if name is None:
        name = own if attends(own) else "qsattn_global"
    if name != own:
        spec = {}
    spec |= options
    part = find("sampler", name)
    if attends(name):
        with contextlib.suppress(PartError):  # a sampler of one's own may have no such value
            part.check_values({"taps": "all"})
            spec["taps"] = "all"  # each map is looked at by itself
    part.check_values(spec)
    try:
        return create("sampler", name, **spec)
    except ValueError as error:
        raise UserError(f"sampler {name!r}: {error}") from error

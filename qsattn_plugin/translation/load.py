"""Loads a generator that translates pictures, from a run folder, a file or a published name."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.decoders import of_pillow
from qsattn_plugin.data.images import carried, normalise_mode, read_first, read_image, read_raster
from qsattn_plugin.data.pixels import NaNImageError, as_pil, from_tensor, shown, to_channels, to_float
from qsattn_plugin.data.preprocess import resize_bands
from qsattn_plugin.data.ranges import Range, to_signal, translated
from qsattn_plugin.data.raster import MOST_BANDS, Raster
from qsattn_plugin.data.writing import ANY
from qsattn_plugin.devices import out_of_memory, pick_device
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import PartError, create, find
from qsattn_plugin.registry.blueprint import blueprint
from qsattn_plugin.registry.pretrained import entries, published_model, weights_file
from qsattn_plugin.storage import DamagedFile, load_tensors, read_document, read_shapes
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.storage.content import pretence
from qsattn_plugin.storage.hub import PREFIX, hub_file
from qsattn_plugin.storage.weights import in_a_line, misfits
from qsattn_plugin.translation.apply import padded_size, translate, with_alpha
from qsattn_plugin.translation.files import KEPT
from qsattn_plugin.translation.sizes import FACTOR, At, carry_back, carry_back_signal, resize_picture, working_size
from qsattn_plugin.translation.tiles import TILE, CannotTile, is_large, tiled_chain, translate_tiled

#: Suffixes of other projects' checkpoints.
_FOREIGN_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
#: The most pixels in a batch: sixteen pictures of 256 x 256.
_BATCH_PIXELS = 1 << 20

Progress = Callable[[float], None]

_LOGGER = logging.getLogger(__name__)


class Untiled(UserWarning):
    """Large pictures need much memory, because this generator cannot work in tiles."""


class Weights(NamedTuple):
    """A model's file, and the name that means this model and no other: a run's folder, a file, ``pretrained/NAME``."""

    name: str
    path: Path


class Translator(nn.Module):
    """A trained generator, for tensors and for pictures.

    Args:
        generator: the network.
        channels: channels of its input images.
        document: the document of its file, such as the recipe and the step.
        trained: the shorter side, in pixels, that pictures had in training; None: unknown.
        weights: its file; None where it was not loaded from one.
        ranges: the value ranges of its input and of its output; None: 8 bits.
        bands: of what has more than three, the three that people are shown, counted from 1; None: the first.
        out_channels: channels of its output; None: as many as of its input.
    """

    def __init__(
        self,
        generator: nn.Module,
        channels: int,
        document: dict[str, Any] | None = None,
        trained: int | None = None,
        weights: Weights | None = None,
        ranges: tuple[Range | None, Range | None] = (None, None),
        bands: tuple[int, int, int] | None = None,
        out_channels: int | None = None,
    ):
        super().__init__()
        self.generator = generator
        self.channels = channels
        self.document = document or {}
        self.trained = trained
        self.weights = weights
        self.ranges = ranges
        self.out_channels = out_channels or channels
        self.bands = bands

    def extra_repr(self) -> str:
        return f"trained={self.trained}"

    @property
    def origin(self) -> str:
        """Which model this is, in a line for people: its name, its file, and the size that it was trained at."""
        size = f"at {self.trained} px" if self.trained else "at a size that its file does not say"
        name, path = self.weights or ("an untrained generator", None)
        return f"{name}{f' ({path})' if path and str(path) != name else ''}, trained {size}"

    @property
    def carries(self) -> bool:
        """Whether a change made at another size is carried back to a picture: its translation is of the same kind."""
        return (self.channels, self.ranges[0]) == (self.out_channels, self.ranges[1])

    def forward(self, images: Tensor) -> Tensor:
        """Translate images (B, C, H, W) in [-1, 1]; H and W are multiples of ``generator.multiple``.

        Raises:
            UserError: the images have other axes or channels, or are bytes.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.channels:
            batch = "; a single image needs a batch axis: images[None]" if len(shape) == 3 else ""
            raise UserError(f"images: must be (B, {self.channels}, H, W), got {shape}{batch}")
        if not images.is_floating_point():
            raise UserError(
                f"images: must be floats in [-1, 1], got {images.dtype}; write images / 127.5 - 1 for bytes"
            )
        return self.generator(images)

    @overload
    def translate(
        self, pictures: Image.Image, tile: int | None = None, at: At | None = None, progress: Progress = ...
    ) -> Image.Image: ...

    @overload
    def translate(
        self, pictures: Iterable[Image.Image], tile: int | None = None, at: At | None = None, progress: Progress = ...
    ) -> list[Image.Image]: ...

    def translate(
        self,
        pictures: Image.Image | Iterable[Image.Image],
        tile: int | None = None,
        at: At | None = None,
        progress: Progress = lambda share: None,
    ) -> Image.Image | list[Image.Image]:
        """Translate pictures of any mode and size to pictures of the same sizes.

        Transparency, colour profile and resolution are kept; wide gamuts become sRGB.

        The EXIF orientation of a picture is applied. Pictures much larger or smaller than those in training are
        translated at the trained size, and the change is carried back (:mod:`qsattn_plugin.translation.sizes`); where
        the output has other channels than the input, so that there is no change to add, the translation is enlarged.
        Consecutive pictures of the same size share a batch. What is large at the size at which it is translated is
        translated in tiles where the generator's layers allow it, with the same result in less memory.

        Args:
            pictures: one, or a list or any other iterable; an iterator is consumed picture by picture.
            tile: more than ``tile`` x ``tile`` pixels are translated in tiles of that side; 0: never in tiles. None:
                tiles of 512 pixels for more than 1024 x 1024.
            at: the size at which pictures are translated: pixels of the shorter side, "trained", or "full", their own.
                None: "trained" where the shorter side differs from it by more than 1.5 times, otherwise "full".
            progress: called with parts of a picture as they are done, where it is translated in tiles.

        Returns:
            A picture for a picture, otherwise a list.

        Raises:
            CannotTile: ``tile`` is set, and the generator cannot work in tiles.
            DiskFull: there is too little space for the feature maps of a large picture.
            TypeError: something is not a PIL image.
            UnreadableImage: at this size, a picture would have more than 128 megapixels.
            UserError: ``at`` is "trained", and that size is unknown; or the generator is not one of 8-bit pictures.
            ValueError: a picture has no pixels.
        """
        if isinstance(pictures, Image.Image):
            return self.translate([pictures], tile, at, progress)[0]
        self.check_eight_bits()
        if isinstance(pictures, Sequence):  # others are checked one by one, as they come
            for picture in pictures:
                _checked(picture)
        out: list[Image.Image] = []
        # A generator: a long list is not held twice.
        found = (self._seen(normalise_mode(_checked(picture)), at) for picture in pictures)
        for size, alike in itertools.groupby(found, key=lambda pair: pair[1].size):
            width, height = padded_size(self.generator, size)
            tiled = is_large((width, height), tile) and self._can_tile(size, tile)
            most = 1 if tiled else max(1, _BATCH_PIXELS // (width * height))
            while batch := list(itertools.islice(alike, most)):
                seen = [small for _, small in batch]
                made = [self._in_tiles(seen[0], tile or TILE, progress)] if tiled else self._whole(seen)
                for (picture, small), result in zip(batch, made, strict=True):
                    if self.carries:
                        out.append(carry_back(picture, small, result))
                    else:
                        out.append(with_alpha(resize_picture(result, picture.size), picture))
                    out[-1].info.update(carried(picture, out[-1].mode))
        return out

    def check_eight_bits(self) -> None:
        """Raise :class:`UserError` if this generator does not translate pictures of 8 bits, as PIL images are."""
        if any(self.ranges):
            raise UserError(
                "this model's pictures have a value range (model.ranges), which a PIL image does not hold: "
                "model.translate_values(model.read(path))"
            )
        if max(self.channels, self.out_channels) > 4:
            channels = f"{self.channels} to {self.out_channels} channels"
            raise UserError(f"this model translates {channels}, which a PIL image does not hold: call it with tensors")

    def _seen(self, picture: Image.Image, at: At | None) -> tuple[Image.Image, Image.Image]:
        """Return a picture, and the same at the size at which it is translated."""
        return picture, resize_picture(picture, working_size(picture.size, at, self.trained))

    def read(self, path: str | os.PathLike, page: int | None = None) -> Image.Image | Raster:
        """Read a picture file as this generator takes it; raise as :func:`~qsattn_plugin.data.images.read_image`."""
        return read_image(path, page) if self.ranges[0] is None else read_raster(path, page)

    def signal(self, picture: Image.Image | Raster) -> Tensor:
        """Return a picture as an image (C, H, W) in [-1, 1] for the generator.

        Raises:
            UnreadableImage: it has other bands than the generator takes, or values that are no numbers.
            UserError: it has 8 bits, and the generator takes pictures of a value range.
        """
        if isinstance(picture, Raster):
            assert self.ranges[0] is not None  # only then it is read so
            return to_signal(picture, self.ranges[0], self.channels)
        if self.ranges[0] is not None:
            self.check_eight_bits()
        return to_float(to_channels(picture, self.channels))

    def preview(self, picture: Image.Image | Raster, made: bool = False) -> Image.Image:
        """Return a picture, or one that this generator made, as people are shown it: RGB, three of many bands."""
        if not isinstance(picture, Raster):
            return picture
        value_range = self.ranges[made]
        assert value_range is not None  # only then it is a raster
        return shown(to_signal(picture, value_range, self.out_channels if made else self.channels), self.bands)

    def shown(self, path: str | os.PathLike, made: bool = False) -> Image.Image:
        """Read a picture file of the source domain, or of the target domain (``made``), as people are shown it."""
        if self.ranges[made] is None:
            return read_first(path)
        return self.preview(read_raster(path), made)

    @property
    def kept(self) -> tuple[tuple[str, ...], str]:
        """The file name endings that translations keep, and the one that all others get."""
        value_range = self.ranges[1]
        if value_range is None:
            return KEPT, ".png"
        deep = value_range == "dtype" or (value_range[0] >= 0 and 255 <= value_range[1] <= 65535)
        return ((*ANY, ".png") if deep and self.out_channels <= 4 else ANY), ".tif"

    def translate_values(
        self,
        picture: Image.Image | Raster,
        tile: int | None = None,
        at: At | None = None,
        progress: Progress = lambda share: None,
    ) -> Image.Image | Raster:
        """Translate what :meth:`read` returned where the input or the output has a value range.

        The result has the kind of the target domain, in the number type of the source where that holds its range; it is
        a PIL image of 8 bits where the target domain has no range. Where both domains have the same range and as many
        bands, the change is carried back to the picture's own size; otherwise the translation is enlarged. Arguments
        and errors are those of :meth:`translate`.
        """
        image, out_range = self.signal(picture), self.ranges[1]
        size = working_size(picture.size, at, self.trained)
        seen = image if size == picture.size else resize_bands(image, size).clamp_(-1, 1)
        padded = padded_size(self.generator, size)
        if is_large(padded, tile) and self._can_tile(size, tile):
            made = translate_tiled(self.generator, seen, tile or TILE, progress=progress)
        else:
            weights = next(self.generator.parameters())
            made = translate(self.generator, seen[None].to(weights.device, weights.dtype))[0].float().cpu()
        if made.isnan().any():
            raise NaNImageError("the translation holds NaN")
        if seen is not image:
            enlarged = None if self.carries else resize_bands(made, picture.size).clamp_(-1, 1)
            made = carry_back_signal(image, seen, made) if enlarged is None else enlarged
        if out_range is not None:
            return translated(picture if isinstance(picture, Raster) else of_pillow(picture), made, out_range)
        result = from_tensor(made)
        if isinstance(picture, Image.Image):
            result = with_alpha(result, picture)
            result.info.update(carried(picture, result.mode))
        return result

    def _whole(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Translate pictures of one size in one batch."""
        weights = next(self.generator.parameters())
        images = torch.stack([to_float(to_channels(picture, self.channels)) for picture in pictures])
        results = translate(self.generator, images.to(weights.device, weights.dtype)).cpu()
        return [with_alpha(from_tensor(r), picture) for r, picture in zip(results, pictures, strict=True)]

    def _in_tiles(self, picture: Image.Image, tile: int, progress: Progress) -> Image.Image:
        """Translate a large picture."""
        pixels = translate_tiled(self.generator, to_channels(picture, self.channels), tile, progress=progress)
        return with_alpha(as_pil(pixels), picture)

    def _can_tile(self, size: tuple[int, int], tile: int | None) -> bool:
        """Return whether the generator can work in tiles; warn if it cannot, or raise if ``tile`` asks for it."""
        try:
            tiled_chain(self.generator, self.channels, (size[1], size[0]))
        except CannotTile as error:
            if tile is not None:
                raise
            warnings.warn(f"{error}; translating it whole", Untiled, stacklevel=3)
            return False
        return True


def _checked(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        remedy = "call the model itself with tensors" if isinstance(picture, Tensor) else "open it with PIL.Image.open"
        raise TypeError(f"pictures: must be PIL images, got {type(picture).__name__}; {remedy}")
    if not all(picture.size):
        raise ValueError(f"pictures: one has no pixels, its size is {picture.width} x {picture.height}")
    return picture


def load(model: str | Path, device: torch.device | str = "cpu", name: str | None = None) -> Translator:
    """Load a generator for translation.

    Args:
        model: a run folder or a name below ``runs/`` (its newest undamaged checkpoint; with ``@best`` appended, the
            weights with the best score), a checkpoint or weights file, or the name of a published model, such as
            "toy" or "pretrained/toy", or ``hf:OWNER/NAME[@REVISION]`` for one on the Hugging Face Hub.
        device: where to put the generator: "cpu", "cuda", ..., or "auto" for the best of this machine.
        name: which generator, where a method trains several ("forward", "backward"); None: the main one.

    Raises:
        UserError: there is no such model, several have the name, it holds no such generator, or the device cannot be
            used here.
    """
    translator = load_file(find_weights(model), device, name)
    _LOGGER.info("model: %s", translator.origin)
    return translator


def load_file(weights: Weights, device: torch.device | str = "cpu", name: str | None = None) -> Translator:
    """Load the generator of a file that :func:`find_weights` found, as :func:`load` does."""
    path = weights.path
    try:
        document = read_document(path)
    except DamagedFile as error:
        if path.suffix.lower() not in _FOREIGN_SUFFIXES or pretence(path):
            raise
        convert = f"qsattn import {path} -o {path.with_suffix('.safetensors')}"
        raise UserError(f"{path} is not a weights file of this package; convert it with `{convert}` first") from error
    generators = _generators(path, document)
    name = name or main_generator(generators)
    if name not in generators:
        raise UserError(f"{path} has no generator {name!r}{nearest(name, generators)} ({', '.join(generators)})")
    spec = generators[name]
    _import_parts(path, document)
    try:
        plan = blueprint("generator", spec["type"], spec["arguments"])
    except PartError as error:
        if imports := (document.get("recipe") or {}).get("import"):
            parts = ", ".join(map(str, imports))
            raise UserError(
                f"{path}: {error}. It was trained with parts from {parts}: load its run's folder, or import them first"
            ) from error
        raise DamagedFile(f"{path}: {error}") from error
    takes = find("generator", spec["type"]).signature.parameters
    for side, said in (("in_channels", _channels(spec)), ("out_channels", _out(spec))):
        if side in takes and (own := spec["arguments"].get(side, takes[side].default)) != said:
            raise DamagedFile(f"{path} has no valid description of its generators: {said} channels, but {side} {own}")
    try:
        wrong = misfits(plan.state_dict(), read_shapes(path, spec["prefix"])) if plan is not None else []
        if not wrong:
            # The drawn weights are replaced: drawing them must not change the caller's random numbers.
            with torch.random.fork_rng(devices=[]):
                generator = create("generator", spec["type"], **spec["arguments"])
            generator.load_state_dict(load_tensors(path, spec["prefix"])[0])
    except (ValueError, TypeError, RuntimeError) as error:  # of a part that is not this package's
        if out_of_memory(error):
            raise
        wrong = [" ".join(str(error).split())]
    if wrong:
        raise DamagedFile(f"{path} does not hold the weights of the generator that it describes: {in_a_line(wrong)}")
    generator.requires_grad_(False)
    there, back = (tuple(one) if isinstance(one, list) else one for one in spec.get("ranges", (None, None)))
    bands = ((document.get("recipe") or {}).get("evaluate") or {}).get("bands")
    trained = _trained(spec, document)
    ranges = (there, back)
    bands = tuple(bands) if bands else None
    translator = Translator(generator, _channels(spec), document, trained, weights, ranges, bands, _out(spec))
    return translator.eval().to(pick_device(str(device)))


def _channels(spec: dict[str, Any]) -> Any:
    """Return the channels of a generator's images; older files have them only as an argument."""
    return spec.get("channels", spec["arguments"].get("in_channels"))


def _out(spec: dict[str, Any]) -> Any:
    """Return the channels of a generator's output; as many as of its input, if it does not say."""
    return spec.get("out_channels", spec["arguments"].get("out_channels", _channels(spec)))


def _trained(spec: dict[str, Any], document: dict[str, Any]) -> int | None:
    """Return the shorter side that pictures had in training; None: unknown.

    It is that of pictures in tests: ``crop`` where pictures are seen whole, up to a margin for random crops; ``resize``
    where crops show a part of them.
    """
    data = (document.get("recipe") or {}).get("data") or {}
    mode, crop, resize = data.get("preprocess", "none"), data.get("crop") or 0, data.get("resize") or 0
    if spec.get("trained") or mode == "none":
        return spec.get("trained")
    parts = mode == "resize_and_crop" and data.get("random_crop") == "always" and resize > FACTOR * crop
    return resize if parts or mode.startswith("scale") else crop


def main_generator(generators: Iterable[str]) -> str:
    """Return the name of the generator that translates from source to target, among all in a file."""
    return min(generators, key=lambda name: name != "forward")


def _generators(path: Path, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the description of each generator in a file, by name."""
    found = document.get("generators")
    if not found:
        raise DamagedFile(f"{path} holds no generator")
    for name, spec in found.items():
        counts = [_channels(spec), _out(spec)]
        if not all(type(c) is int and 1 <= c <= MOST_BANDS for c in counts) or spec.get("trained") == 0:
            what = f"{name} gives no channels (1 to {MOST_BANDS})"
            raise DamagedFile(f"{path} has no valid description of its generators: {what}")
    return found


def _import_parts(path: Path, document: dict[str, Any]) -> None:
    """Import the modules that a run's recipe imports, if ``path`` is a checkpoint in the run's folder."""
    recipe = path.parent.parent / "recipe.yaml"
    if (document.get("recipe") or {}).get("import") and path.parent.name == "checkpoints" and recipe.is_file():
        from qsattn_plugin.registry.recipe import load_recipe  # not needed by torch.hub, which has no pydantic

        load_recipe(recipe)


def published(
    name: str, pretrained: bool = True, progress: bool = True, device: torch.device | str = "cpu"
) -> Translator:
    """Load a published model (``qsattn list pretrained``), also if a run or file has its name; for ``torch.hub.load``.

    Without ``pretrained`` its generator is untrained; ``progress`` shows the progress of a download on stderr.

    Raises:
        UserError: there is no such model, it has no weights yet, or they could not be downloaded.
    """
    entry = published_model(name)
    if not pretrained:
        return fresh(entry.generator, **entry.arguments).to(pick_device(str(device)))
    return load_file(Weights(f"pretrained/{name}", weights_file(entry, progress)), device)


def fresh(type: str, **arguments: Any) -> Translator:
    """Return an untrained generator by its registered name.

    Raises:
        PartError: there is no such generator, or it takes other arguments.
    """
    generator = create("generator", type, **arguments)
    channels, out_channels = (arguments.get(name, 3) for name in ("in_channels", "out_channels"))
    return Translator(generator, channels, out_channels=out_channels).eval()


def find_weights(model: str | Path) -> Weights:
    """Find a model's weights: a file itself, a run's newest undamaged checkpoint, a published file.

    ``RUN@best`` is the checkpoint with the best score of that run, ``pretrained/NAME`` the published model,
    ``hf:OWNER/NAME[@REVISION]`` a model on the Hugging Face Hub.

    Raises:
        UserError: there is no such model, or both a run or file and a published model have the name.
    """
    known, asked = entries(), str(model)
    if asked.startswith(PREFIX) and isinstance(model, str):
        return Weights(asked, hub_file(asked))
    named = asked in known and isinstance(model, str)  # a Path is a file or folder
    kind, _, rest = asked.partition("/")
    if kind == "pretrained" and rest in known and not Path(model).exists():
        return Weights(asked, weights_file(known[rest]))
    path, _, which = asked.rpartition("@")
    best = which == "best" and not Path(model).exists()
    model = Path(path if best else model)
    folders = [folder for folder in (model, Path("runs") / model) if is_run(folder)]
    if named:
        here = [f"./{asked}"] if model.is_file() or model in folders else [str(folder) for folder in folders]
        if here:
            raise UserError(f"{asked} is {here[0]} here, and a published model: write {here[0]} or pretrained/{asked}")
        return Weights(f"pretrained/{asked}", weights_file(known[asked]))
    if model.is_file() and not best:
        return Weights(asked, model)
    for folder in folders:
        checkpoints = Checkpoints(folder / "checkpoints")
        if best and not checkpoints.best.is_file():
            raise UserError(
                f"{folder} has no best weights yet: an evaluation keeps them (evaluate.every), by evaluate.kid where "
                f"the recipe sets it. {folder} without @best is its newest checkpoint"
            )
        found = checkpoints.best if best else checkpoints.newest()[0]
        if found is None:
            raise UserError(f"{folder} holds no checkpoint yet; train it with `qsattn fit {folder}`")
        return Weights(f"{folder}{'@best' if best else ''}", found)
    if model.is_dir():
        raise UserError(f"{asked} is a folder, but not of a run: it contains neither a recipe.yaml nor checkpoints")
    names = [*(path.parent.name for path in Path("runs").glob("*/recipe.yaml")), *known]
    raise UserError(f"there is no run, file or published model {str(model)!r}{nearest(model.name, names)}")


def is_run(folder: Path) -> bool:
    """Return whether a path is a run's folder."""
    return folder.is_dir() and ((folder / "checkpoints").is_dir() or (folder / "recipe.yaml").is_file())

"""From a run folder, a file or a published name to a generator that translates pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.images import plain
from qsattn_plugin.data.pixels import as_pil, from_tensor, to_channels, to_float
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import PartError, create
from qsattn_plugin.registry.pretrained import entries, published_model, weights_file
from qsattn_plugin.storage import DamagedFile, load_tensors
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.translation.apply import padded_size, translate, with_alpha
from qsattn_plugin.translation.tiles import TILE, CannotTile, is_large, translate_tiled

#: Endings of what other projects write.
_FOREIGN = (".pth", ".pt", ".bin", ".ckpt")
#: Pixels of the pictures that share a batch: sixteen of 256 x 256.
_TOGETHER = 1 << 20


class Translator(nn.Module):
    """A trained generator: tensors in, tensors out, or pictures in, pictures out.

    Args:
        generator: the network.
        channels: channels of the images it takes.
        document: what is known about it: recipe, step, scores.
    """

    def __init__(self, generator: nn.Module, channels: int, document: dict[str, Any] | None = None):
        super().__init__()
        self.generator = generator
        self.channels = channels
        self.document = document or {}

    def forward(self, images: Tensor) -> Tensor:
        """Translate (B, C, H, W) in [-1, 1]; sides a multiple of ``generator.multiple``."""
        return self.generator(images)

    @overload
    def translate(self, pictures: Image.Image, tile: int | None = None) -> Image.Image: ...

    @overload
    def translate(self, pictures: Iterable[Image.Image], tile: int | None = None) -> list[Image.Image]: ...

    def translate(
        self, pictures: Image.Image | Iterable[Image.Image], tile: int | None = None
    ) -> Image.Image | list[Image.Image]:
        """Translate pictures of any mode and size to pictures of the same sizes; transparency is kept.

        A picture that says how it is to be turned (its EXIF orientation) comes out turned. Neighbours of equal size in
        a list share a batch. Large pictures are translated in tiles, with the same result in less memory, where the
        generator says what it is made of.

        Args:
            pictures: one, or a list or any other iterable; what a generator gives is taken one by one.
            tile: pictures of more than ``tile`` x ``tile`` pixels are translated in tiles of that side; 0 translates
                all whole. Without it, tiles of 512 pixels for pictures of more than 1024 x 1024.

        Raises:
            CannotTile: tiles were asked for, and the generator cannot work in tiles.
            UserError: the disk is too full for the feature maps of a large picture.
            TypeError: something is no PIL image.
            ValueError: a picture has no pixels.
        """
        if isinstance(pictures, Image.Image):
            return self.translate([pictures], tile)[0]
        if isinstance(pictures, Sequence):  # else they come one by one, and are looked at when they do
            for picture in pictures:
                _checked(picture)
        out: list[Image.Image] = []
        # One after the other: a long list is not held twice.
        found = (plain(_checked(picture)) for picture in pictures)
        for size, alike in itertools.groupby(found, key=lambda picture: picture.size):
            width, height = padded = padded_size(self.generator, size)
            if is_large(padded, tile):
                out += [self._in_tiles(picture, tile) for picture in alike]
                continue
            while batch := list(itertools.islice(alike, max(1, _TOGETHER // (width * height)))):
                out += self._whole(batch)
        return out

    def _whole(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Translate pictures of one size in one batch."""
        weights = next(self.generator.parameters())
        images = torch.stack([to_float(to_channels(picture, self.channels)) for picture in pictures])
        results = translate(self.generator, images.to(weights.device, weights.dtype)).cpu()
        return [with_alpha(from_tensor(r), picture) for r, picture in zip(results, pictures, strict=True)]

    def _in_tiles(self, picture: Image.Image, tile: int | None) -> Image.Image:
        """Translate a large picture."""
        try:
            pixels = translate_tiled(self.generator, to_channels(picture, self.channels), tile or TILE)
        except CannotTile:
            if tile is not None:
                raise
            return self._whole([picture])[0]
        return with_alpha(as_pil(pixels), picture)


def _checked(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise TypeError(f"pictures: must be PIL images, got {type(picture).__name__}; open it by PIL.Image.open")
    if not all(picture.size):
        raise ValueError(f"pictures: one has no pixels, its size is {picture.width} x {picture.height}")
    return picture


def load(model: str | Path, device: torch.device | str = "cpu", name: str | None = None) -> Translator:
    """Load a generator for translation.

    Args:
        model: a run folder (its newest whole checkpoint) or a name below ``runs/``, with ``@best`` behind it for the
            weights with the best score instead, or a checkpoint or weights file, or the name of a published model,
            such as "toy", where no run or file has that name.
        device: where to put it.
        name: which generator, where a method trains several ("forward", "backward"); the main one without it.

    Raises:
        UserError: there is no such model, or nothing in it can translate.
    """
    path = find_weights(model)
    try:
        _, document = load_tensors(path, prefix="\0")  # the document alone
    except DamagedFile as error:
        if path.suffix.lower() not in _FOREIGN:
            raise
        raise UserError(
            f"{path} is no weights file of this package; take it over by "
            f"`qsattn import {path} -o {path.with_suffix('.safetensors')}` first"
        ) from error
    generators = _generators(path, document)
    name = name or main_generator(generators)
    if name not in generators:
        raise UserError(f"{path} has no generator {name!r}{nearest(name, generators)} ({', '.join(generators)})")
    spec = generators[name]
    _import_parts(path, document)
    # The weights are about to be replaced: what the constructor draws must not disturb anybody's random numbers.
    try:
        with torch.random.fork_rng(devices=[]):
            generator = create("generator", spec["type"], **spec["arguments"])
    except PartError as error:
        if imports := (document.get("recipe") or {}).get("import"):
            parts = ", ".join(map(str, imports))
            raise UserError(
                f"{path}: {error}. It was trained with parts from {parts}: load its run's folder, or import them first"
            ) from error
        raise
    tensors, _ = load_tensors(path, spec["prefix"])
    try:
        generator.load_state_dict(tensors)
    except RuntimeError as error:
        raise DamagedFile(f"{path} does not hold the weights of the generator that it describes: {error}") from error
    generator.requires_grad_(False)
    return Translator(generator, _channels(spec), document).eval().to(device)


def _channels(spec: dict[str, Any]) -> Any:
    """The channels of a generator's images; files of before have them as an argument alone."""
    return spec.get("channels", spec["arguments"].get("in_channels"))


def main_generator(generators: Iterable[str]) -> str:
    """Return the name of the generator that translates from source to target, among all that a file holds."""
    return min(generators, key=lambda name: name != "forward")


def _generators(path: Path, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a file says of its generators, by name."""
    found = document.get("generators") if isinstance(document, dict) else None
    if not found:
        raise DamagedFile(f"{path} holds no generator")
    wanted = {"type": str, "arguments": dict, "prefix": str}
    whole = isinstance(found, dict) and all(
        isinstance(spec, dict) and all(isinstance(spec.get(key), kind) for key, kind in wanted.items())
        for spec in found.values()
    )
    if not whole or not all(isinstance(_channels(spec), int) for spec in found.values()):
        raise DamagedFile(f"{path} does not say what its generators are made of")
    return found


def _import_parts(path: Path, document: dict[str, Any]) -> None:
    """Import what the recipe of a run imports, where ``path`` is a checkpoint in the run's folder."""
    recipe = path.parent.parent / "recipe.yaml"
    if (document.get("recipe") or {}).get("import") and path.parent.name == "checkpoints" and recipe.is_file():
        from qsattn_plugin.registry.recipe import load_recipe  # not needed by torch.hub, which has no pydantic

        load_recipe(recipe)


def published(
    name: str, pretrained: bool = True, progress: bool = True, device: torch.device | str = "cpu"
) -> Translator:
    """Load a published model, whatever runs and files there are: what ``torch.hub.load`` calls.

    Args:
        name: in the index, see ``qsattn list pretrained``.
        pretrained: with its weights; else its generator as it is drawn.
        progress: show a download's on stderr.
        device: where to put it.

    Raises:
        UserError: there is no such model, it has no weights yet, or they cannot be had.
    """
    entry = published_model(name)
    if not pretrained:
        return fresh(entry.generator, **entry.arguments).to(device)
    return load(weights_file(entry, progress), device)


def fresh(type: str, **arguments: Any) -> Translator:
    """Build a generator as it is drawn, without training.

    Args:
        type: its registered name.
        arguments: its own.

    Raises:
        PartError: there is no such generator, or it takes other arguments.
    """
    generator = create("generator", type, **arguments)
    return Translator(generator, arguments.get("in_channels", 3)).eval()


def find_weights(model: str | Path) -> Path:
    """Return the file with a model's weights: the file itself, the newest whole checkpoint of a run, a published one's.

    ``RUN@best`` is the checkpoint with the best score of that run, ``pretrained/NAME`` the published model, whatever
    runs there are.

    Raises:
        UserError: there is none.
    """
    known, asked = entries(), str(model)
    kind, _, rest = asked.partition("/")
    if kind == "pretrained" and rest in known and not Path(model).exists():
        return weights_file(known[rest])
    path, _, which = asked.rpartition("@")
    best = which == "best" and not Path(model).exists()
    model = Path(path if best else model)
    if model.is_file() and not best:
        return model
    for folder in (model, Path("runs") / model):
        if not is_run(folder):
            continue
        if best:
            file = Checkpoints(folder / "checkpoints").best
            if file.is_file():
                return file
            raise UserError(
                f"{folder} has no best weights: no evaluation of it gave a score; {folder} is the newest. Pictures of "
                "your own are scored where evaluate.kid was set before the training began"
            )
        newest, _ = Checkpoints(folder / "checkpoints").newest()
        if newest is not None:
            return newest
        other = f"; the published model of that name is pretrained/{asked}" if asked in known else ""
        raise UserError(f"{folder} holds no checkpoint yet; train it with `qsattn fit {folder}`{other}")
    if asked in known and not best:
        return weights_file(known[asked])
    if model.is_dir():
        raise UserError(f"{asked} is a folder, but of no run: there is neither a recipe.yaml nor checkpoints in it")
    names = [*(path.parent.name for path in Path("runs").glob("*/recipe.yaml")), *known]
    raise UserError(f"there is no run, file or published model {str(model)!r}{nearest(model.name, names)}")


def is_run(folder: Path) -> bool:
    """Tell a run's folder from one of pictures, and from what is no folder."""
    return folder.is_dir() and ((folder / "checkpoints").is_dir() or (folder / "recipe.yaml").is_file())

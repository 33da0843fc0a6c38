"""Loads a generator that translates pictures, from a run folder, a file or a published name."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qsattn_plugin.data.preprocess import known_side
from qsattn_plugin.data.raster import MOST_BANDS
from qsattn_plugin.devices import out_of_memory, pick_device
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import PartError, create, find
from qsattn_plugin.registry.blueprint import blueprint
from qsattn_plugin.registry.pretrained import entries, published_model, weights_file
from qsattn_plugin.storage import DamagedFile, load_tensors, read_document, read_shapes
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.storage.content import pretence
from qsattn_plugin.storage.hub import CONFIG, PREFIX, WEIGHTS, checked_weights, hub_file
from qsattn_plugin.storage.weights import in_a_line, misfits
from qsattn_plugin.translation.translator import Translator, Weights

#: Suffixes of other projects' checkpoints.
_FOREIGN_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_LOGGER = logging.getLogger(__name__)


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
        convert = shlex.join(("qsattn", "import", str(path), "-o", str(path.with_suffix(".safetensors"))))
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
                f"{path}: {error}. It was trained with parts from {parts}: load its run's folder, or import them first "
                "(--import FILE)"
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
    """Return the shorter side of the pictures that a generator knows; None: its file does not say.

    Older files have it only as what ``resize_and_crop`` makes of all pictures; the other modes depend on the pictures.
    """
    data = (document.get("recipe") or {}).get("data") or {}
    if spec.get("trained") or data.get("preprocess") != "resize_and_crop":
        return spec.get("trained")
    crop = data.get("crop") or 0
    resize = data.get("resize") or 0
    return known_side(resize if data.get("random_crop") == "always" else crop, crop) or None


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
    ``hf:OWNER/NAME[@REVISION]`` a model on the Hugging Face Hub. A folder may also be what ``qsattn publish`` wrote.

    Raises:
        UserError: there is no such model, or both a run or file and a published model have the name.
    """
    if not str(model):
        raise UserError("the model's name is empty; is a variable of the command not set?")
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
            train = shlex.join(("qsattn", "fit", str(folder)))
            raise UserError(f"{folder} holds no checkpoint yet; train it with `{train}`")
        return Weights(f"{folder}{'@best' if best else ''}", found)
    if (model / CONFIG).is_file() and (model / WEIGHTS).is_file() and not best:
        return Weights(asked, checked_weights(model, asked))
    if model.is_dir():
        raise UserError(f"{asked} is a folder, but not of a run: it contains neither a recipe.yaml nor checkpoints")
    names = [*(path.parent.name for path in Path("runs").glob("*/recipe.yaml")), *known]
    if best and str(model) in known:
        raise UserError(f"{model} is a published model, and @best is for runs: write pretrained/{model}")
    raise UserError(f"there is no run, file or published model {str(model)!r}{nearest(model.name, names)}")


def is_run(folder: Path) -> bool:
    """Return whether a path is a run's folder."""
    return folder.is_dir() and ((folder / "checkpoints").is_dir() or (folder / "recipe.yaml").is_file())

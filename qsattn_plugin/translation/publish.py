"""From a trained run to a model for others: the generator alone, in half precision; with a card; in an index."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import qsattn_plugin
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.pretrained import entries
from qsattn_plugin.storage import save_tensors, write_text
from qsattn_plugin.storage.download import checksum
from qsattn_plugin.storage.hub import CARD, CONFIG, PREFIX, WEIGHTS, parse_hub_name, upload
from qsattn_plugin.translation.apply import smallest_side
from qsattn_plugin.translation.files import check_output
from qsattn_plugin.translation.load import load, load_file, main_generator
from qsattn_plugin.translation.translator import Translator, Weights

_PREFIX = "generator/"


class Published(NamedTuple):
    """The file that :func:`publish` wrote, and how much half precision changes a random image's translation."""

    path: Path
    sha256: str
    size: int  # bytes
    largest: float  # change on [-1, 1]
    mean: float
    facts: dict[str, Any]  # what an index of published models says of it: summary, generator, recipe, training, scores


def publish(
    model: str | Path,
    out: Path,
    generator: str | None = None,
    overwrite: bool = False,
    licence: str | None = None,
    summary: str | None = None,
    index: Path | None = None,
    name: str | None = None,
) -> Published:
    """Write a model's generator in float16, with the recipe that trained it, for others.

    Args:
        model: as for :func:`qsattn_plugin.translation.load.load`.
        out: a file ``*.safetensors``, or a folder: then also ``config.json``, and a card with the metadata of a model
            hub, ``README.md``, from the run's own facts.
        generator: which, where a method trains several.
        overwrite: replace existing files, but never the model itself.
        licence: SPDX identifier, for the card.
        summary: what it is in a sentence, for the card.
        index: that :func:`add_to_index` is to add it to; here it is only asked whether it can.
        name: there; None is its recipe's.

    Raises:
        UserError: there is no such model, a file exists already, or the index cannot take it (:func:`check_entry`).
        WriteFailed: a file could not be written.
    """
    translator = load(model, name=generator)
    assert translator.weights is not None  # it was loaded
    if index is not None:
        check_entry(index, name or (translator.document.get("recipe") or {}).get("name") or "model")
    whole = out.suffix != ".safetensors"
    path = out / WEIGHTS if whole else out
    for file in (path, *(out / name for name in (CONFIG, CARD) if whole)):
        check_output(file, overwrite, translator.weights.path)
    document = translator.document
    spec = document["generators"][generator or main_generator(document["generators"])]
    state = translator.generator.state_dict()
    tensors = {_PREFIX + key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    kept: dict[str, Any] = {key: document[key] for key in ("recipe", "step", "torch") if key in document}
    kept["recipe"] = _without_folders(kept.get("recipe"))
    kind, arguments, channels = spec["type"], spec["arguments"], translator.channels
    described = {"type": kind, "arguments": arguments, "channels": channels, "prefix": _PREFIX}
    described["trained"] = translator.trained
    described |= {key: spec[key] for key in ("ranges", "out_channels") if key in spec}
    save_tensors(path, tensors, {"kind": "weights", "generators": {"forward": described}, **kept})
    side = smallest_side(translator.generator, 128)
    images = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        changes = (load_file(Weights(str(path), path))(images) - translator(images)).abs()
    facts = _facts(translator, spec, kept["recipe"] or {}, licence, summary)
    done = Published(path, checksum(path), path.stat().st_size, changes.max().item(), changes.mean().item(), facts)
    if whole:
        config: dict[str, Any] = {"library_name": "qsattn-plugin", "version": qsattn_plugin.__version__}
        config |= {"sha256": done.sha256, "generator": {"type": kind, "arguments": arguments}, "channels": channels}
        config |= {key: described[key] for key in ("ranges", "out_channels") if key in described}
        config |= {**kept, "trained": translator.trained}
        write_text(out / CONFIG, json.dumps(config, indent=2) + "\n")
        write_text(out / CARD, model_card(done, kept["recipe"]))
    return done


def _facts(
    translator: Translator, spec: dict[str, Any], recipe: dict[str, Any], licence: str | None, summary: str | None
) -> dict[str, Any]:
    """Return what an index of published models says of a model, without what nobody knows."""
    data, train = recipe.get("data") or {}, recipe.get("train") or {}
    source = Path(data["root"]).name if data.get("root") else data.get("type")
    about = f"Trained by {recipe['method']} on {source}." if recipe.get("method") else f"A {spec['type']}."
    step = translator.document.get("step")
    training = {"steps": step, **{key: train.get(key) for key in ("batch_size", "seed", "ema")}}
    found = {
        "summary": summary or about,
        "generator": spec["type"],
        "arguments": spec["arguments"],
        "images": _images(translator),
        "recipe": recipe.get("name"),
        "trained": translator.trained,
        "licence": licence,
        "data": source,
        "training": {key: value for key, value in training.items() if value is not None},
        "scores": _scores(translator, step),
    }
    return {key: value for key, value in found.items() if value not in (None, {})}


def _images(translator: Translator) -> str | None:
    """Return the bands and values of a model's images in words; None for RGB of 8 bits."""
    sides = []
    for channels, values in zip((translator.channels, translator.out_channels), translator.ranges, strict=True):
        kind = f"values {values[0]:g} to {values[1]:g}" if isinstance(values, tuple) else values or "8 bits"
        sides.append(f"{channels} channel{'s' * (channels > 1)} ({kind})")
    return None if sides == ["3 channels (8 bits)"] * 2 else " to ".join(sides)


def _scores(translator: Translator, step: int | None) -> dict[str, float]:
    """Return the scores of a run's evaluation at a step, from the log beside its checkpoints; none elsewhere."""
    assert translator.weights is not None  # it was loaded
    folder = translator.weights.path.parent
    found: dict[str, float] = {}
    if folder.name == "checkpoints" and (log := folder.parent / "metrics.jsonl").is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a line that a crash cut off
                event = json.loads(line)
                if event.get("event") == "evaluate" and event.get("step") == step:
                    found = {name: value for name, value in event["scores"].items() if isinstance(value, float)}
    return found


def model_card(done: Published, recipe: dict[str, Any] | None, name: str = "OWNER/NAME") -> str:
    """Return a card in Markdown, which begins with the metadata that model hubs read."""
    facts = done.facts
    scores = facts.get("scores") or {}
    metadata: dict[str, Any] = {"library_name": "qsattn-plugin", "pipeline_tag": "image-to-image"}
    metadata |= {"license": facts["licence"].lower()} if facts.get("licence") else {}
    metadata["tags"] = ["qs-attn", "unpaired-image-to-image-translation", facts["generator"]]
    metadata |= {"datasets": [facts["data"]]} if facts.get("data") else {}
    if scores:
        metadata["metrics"] = list(scores)
        result = {"task": {"type": "image-to-image"}, "dataset": {"type": facts["data"], "name": facts["data"]}}
        result["metrics"] = [{"type": key, "value": value} for key, value in scores.items()]  # type: ignore[assignment]
        metadata["model-index"] = [{"name": facts["recipe"], "results": [result]}]
    rows = [
        ("generator", f"`{facts['generator']}`"),
        ("images", facts.get("images")),
        ("trained on", facts.get("data")),
        ("shorter side of training pictures", f"{facts['trained']} pixels" if facts.get("trained") else None),
        ("training", ", ".join(f"{key} {value}" for key, value in facts.get("training", {}).items())),
        *((f"{key}, by the run's last evaluation", f"{value:.4g}") for key, value in scores.items()),
        ("half precision changes random images by", f"{done.mean:.2g} on average, {done.largest:.2g} at most, of 2"),
        ("SHA-256", f"`{done.sha256}`"),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows if value)
    parts = ", ".join(f"`{name}`" for name in (recipe or {}).get("import") or ())
    needs = f"It needs the parts of {parts}: import them first, or give them with `--import FILE`.\n\n" if parts else ""
    trained = f"\n## Its recipe\n\n```yaml\n{_yaml(recipe)}```\n" if recipe else ""
    return f"""---
{_yaml(metadata)}---

# {facts.get("recipe", "A generator")}

{facts["summary"]} A generator for unpaired image-to-image translation, by qsattn-plugin {qsattn_plugin.__version__}.

```python
import qsattn_plugin
from PIL import Image

model = qsattn_plugin.load("{PREFIX}{name}")
model.translate(Image.open("photo.jpg")).save("translated.png")
```

or `qsattn translate photo.jpg -m {PREFIX}{name} -o out/`. The weights are safetensors; nothing is unpickled, and the
checksum is compared on every load.

{needs}| | |
|---|---|
{table}
{trained}"""


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def publish_to_hub(done: Published, folder: Path, model: str, message: str = "Publish a generator") -> str:
    """Upload what :func:`publish` wrote into a folder as ``hf:OWNER/NAME``; return the address of its weights.

    Raises:
        UserError: the name has another form, or the hub does not let this user write there.
        DownloadFailed: the hub cannot be reached.
    """
    repository, _ = parse_hub_name(model)
    recipe = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("recipe")
    write_text(folder / CARD, model_card(done, recipe, repository))
    commit = upload(folder, model, message)
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{endpoint}/{repository}/resolve/{commit}/{WEIGHTS}"


def check_entry(index: Path, name: str) -> None:
    """Check that an index can take a model of that name.

    Raises:
        UserError: the index is not one, or has a model of that name, or none can be called so.
    """
    if index.exists() and name in entries(index):
        raise UserError(f"{index} has a model {name!r} already; choose another --name")
    if not name.isidentifier():  # torch.hub's entry is the function qsattn_NAME
        raise UserError(
            f"{name!r} cannot be a model's name: letters, digits and underscores, no digit first; give --name"
        )


def add_to_index(done: Published, index: Path, name: str, url: str | None = None) -> Path | None:
    """Append a model to an index of published models, from which ``hubconf.py`` makes its entries.

    Without a ``url`` the weights are copied to ``weights/NAME.safetensors`` beside the index.

    Returns:
        The copied file, or None with a ``url``.

    Raises:
        UserError: as :func:`check_entry`, or there is such a file of weights.
        WriteFailed: a file could not be written.
    """
    check_entry(index, name)
    text = index.read_text(encoding="utf-8") if index.exists() else ""
    target = None if url else index.parent / "weights" / f"{name}.safetensors"
    if target is not None:
        check_output(target, False, done.path)
    place = {"url": url} if url else {"file": f"{name}.safetensors"}
    entry = {name: {**done.facts, **place, "sha256": done.sha256}}
    with tempfile.TemporaryDirectory() as work:  # an index that cannot be read is not written
        trial = Path(work) / index.name
        trial.write_text(f"{text.rstrip()}\n\n{_yaml(entry)}".lstrip(), encoding="utf-8")
        entries(trial)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(done.path, target)
        write_text(index, trial.read_text(encoding="utf-8"))
    return target


def _without_folders(value: Any) -> Any:
    """Return a recipe's data with every absolute path cut to its last part: folders of a machine are not published."""
    if isinstance(value, dict):
        return {key: _without_folders(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_without_folders(below) for below in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

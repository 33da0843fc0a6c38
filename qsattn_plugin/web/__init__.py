"""A static page that translates pictures in the visitor's browser: a folder for any web server.

The page computes what :class:`~qsattn_plugin.translation.translator.Translator` computes: `page/model.js` resizes as
Pillow does, pads, runs the generator's ONNX file, and carries the change back by the arithmetic of
:mod:`qsattn_plugin.translation.sizes`, whose constants it gets from here. Entropies come from
:func:`~qsattn_plugin.attention.entropy.tile_entropy`, exported to ONNX.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qsattn_plugin.attention import GlobalAttention, LocalAttention
from qsattn_plugin.attention.entropy import tile_entropy
from qsattn_plugin.data.images import read_image, write_image
from qsattn_plugin.data.preprocess import FACTOR
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.mapping import choose_sampler
from qsattn_plugin.evaluation.maps import COLOURS, GREY_SHARE
from qsattn_plugin.evaluation.sources import feature_source
from qsattn_plugin.samplers.qsattn import POSITIONS
from qsattn_plugin.storage import WriteFailed, replacing
from qsattn_plugin.translation.export import export, subject_of
from qsattn_plugin.translation.export.formats import Subject, onnx_program
from qsattn_plugin.translation.sizes import ENLARGED, EPS
from qsattn_plugin.translation.translator import Translator
from qsattn_plugin.web.runtime import copied, file_facts, linked

#: The page's sources, beside this file.
PAGE = Path(__file__).parent / "page"
_SITE = "site.json"


class Site(NamedTuple):
    """The folder that :func:`write_site` wrote; the bytes in it, and the largest difference of its models' files."""

    folder: Path
    files: dict[str, int]  # path below the folder -> bytes
    difference: float  # on [-1, 1], of the ONNX files from the generators


class EntropyRows(nn.Module):
    """:func:`~qsattn_plugin.attention.entropy.tile_entropy` with a fixed scale, for an export."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        return tile_entropy(queries, keys, mask, self.scale)


def write_site(
    models: Sequence[tuple[str | None, Translator]],
    out: Path,
    runtime: Path | None = None,
    examples: Iterable[Path] = (),
    generator: str | None = None,
    overwrite: bool = False,
) -> Site:
    """Write the page with some models into a folder; other files in it stay.

    Args:
        models: the menu, in order: a name for each (None: that of its recipe), and the loaded model. They translate
            colour pictures.
        out: the folder.
        runtime: an installed npm package onnxruntime-web, to be copied; None: it is linked.
        examples: pictures that the page offers.
        generator: which of a model's generators was loaded, if not the main one.
        overwrite: write into a folder that holds such a page, and delete its files that are no longer part of it.

    Raises:
        UserError: the folder holds a page already, a model cannot be exported, a picture cannot be read, ...
        WriteFailed: a file could not be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; a page is a folder")
    before = _files_of(out)
    if before and not overwrite:
        raise UserError(f"{out} holds a page already; choose another folder, or use --overwrite")
    with tempfile.TemporaryDirectory(prefix="qsattn-site-") as work:
        site = Path(work)
        shown = [_example(path, site) for path in examples]  # first: exports take their time
        exported = [_model(name, translator, site, generator) for name, translator in models]
        content: dict[str, Any] = {
            "models": [facts for facts, _ in exported],
            "runtime": linked() if runtime is None else copied(runtime, site),
            "examples": shown,
            "colours": [[round(255 * c) for c in colour] for colour in COLOURS.tolist()],
            "grey": GREY_SHARE,
            "sizes": {"factor": FACTOR, "enlarged": ENLARGED, "eps": EPS},
        }
        lay_out(site, content)
        written = {name: (site / name).stat().st_size for name in content["files"]}
        _install(site, out, written, before)
    return Site(out, written, max(difference for _, difference in exported))


def _model(name: str | None, translator: Translator, site: Path, generator: str | None) -> tuple[dict[str, Any], float]:
    """Write a model's ONNX files; return what the page knows of it, and how far they are from the generator."""
    subject = subject_of(translator, generator, name)
    name = subject.document["name"]
    made = subject.generator(_probe(subject.channels, subject.least))
    if (subject.channels, made.shape[1]) != (3, 3):
        raise UserError(
            f"{name} translates {subject.channels} channels to {made.shape[1]}; the page shows colours, 3 to 3"
        )
    if any(translator.ranges):
        raise UserError(f"{name} translates pictures of a value range (data.range); the page shows those of 8 bits")
    stem = re.sub(r"[^\w-]+", "_", name)
    if (site / "models" / f"{stem}.onnx").exists():
        raise UserError(f"two of the models are called {name}")
    attention = _attention(translator, site)
    taps = tuple(tap["index"] for tap in attention["taps"]) if attention else ()
    done = export(dataclasses.replace(subject, taps=taps), "onnx", site / "models" / f"{stem}.onnx")
    facts = {key: subject.document[key] for key in ("name", "multiple", "least", "trained", "generator", "step")}
    facts |= {"file": file_facts(done.path, f"models/{stem}.onnx"), "attention": attention}
    return {**facts, "probe": _probed(subject)}, done.difference


def _probe(channels: int, side: int) -> Tensor:
    """Return an image (1, C, side, side) that any program can make: value i is (7919 i mod 256) / 127.5 - 1."""
    places = torch.arange(channels * side * side)
    return (places * 7919 % 256).view(1, channels, side, side) / 127.5 - 1


def _probed(subject: Subject) -> dict[str, Any]:
    """Return what the generator makes of a probe at 64 places, so that the page can compare what its browser makes."""
    side = subject.least * -(-32 // subject.least)
    made = subject.generator(_probe(subject.channels, side)).flatten()
    every = len(made) // 64
    return {"side": side, "every": every, "values": [round(v, 5) for v in made[::every][:64].tolist()]}


def _attention(translator: Translator, site: Path) -> dict[str, Any] | None:
    """Write the entropy's ONNX file; return the taps and the attention of a model. None where it has no own encoder."""
    assert translator.weights is not None  # it was loaded
    source = feature_source(translator.weights.name, translator=translator)
    if not getattr(source.encoder, "of_generator", False):
        return None
    sampler = choose_sampler(source, None, {})
    selector = getattr(sampler, "selector", None) or GlobalAttention()  # as entropy_map has it
    side = translator.trained or 256
    taps = {tap.index: tap for tap in translator.generator.taps}  # type: ignore[union-attr]  # it has an encoder
    fit = [t for t in source.encoder.taps if (side // taps[t].stride) ** 2 <= POSITIONS] or [source.encoder.taps[-1]]
    return {
        "file": _entropy_file(selector.scale, site),
        "taps": [{"index": t, "name": taps[t].name, "stride": taps[t].stride} for t in fit],
        "tap": next((t for t in reversed(fit) if t in source.taps), fit[-1]),
        "window": selector.window if isinstance(selector, LocalAttention) else None,
        "queries": sampler.queries,
    }


def _entropy_file(scale: float, site: Path) -> dict[str, Any]:
    """Write the entropy's ONNX file, one for all models of the same scale; return what the page knows of it."""
    name = f"models/entropy-{scale:g}.onnx"
    if not (site / name).exists():
        channels, keys, rows = (torch.export.Dim(axis, min=2) for axis in ("channels", "keys", "rows"))
        shapes = {0: rows, 1: channels}, {0: channels, 1: keys}, {0: rows, 1: keys}
        example = torch.rand(5, 8), torch.rand(8, 24), torch.zeros(5, 24)
        program = onnx_program(EntropyRows(scale), example, shapes, ["queries", "keys", "mask"], ["log_entropy"])
        (site / "models").mkdir(exist_ok=True)
        program.save(site / name, external_data=False)
    return file_facts(site / name, name)


def _example(path: Path, site: Path) -> str:
    """Copy a picture of the page's own, as PNG if browsers do not show its format; return its address."""
    picture = read_image(path)  # one that cannot be read is told now
    known = path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
    target = site / "examples" / re.sub(r"[^\w.-]+", "_", path.name if known else f"{path.stem}.png")
    if target.exists():
        raise UserError(f"two of the examples would be called {target.name}; give one of them another name")
    target.parent.mkdir(exist_ok=True)
    if known:
        shutil.copyfile(path, target)
    else:
        write_image(picture, target)
    return f"examples/{target.name}"


def lay_out(site: Path, content: dict[str, Any]) -> None:
    """Write the page itself. The service worker's text names a version: a browser looks whether that text changed."""
    others = {re.match(r"https?://[^/]+", pair[part]["url"]) for pair in _pairs(content) for part in pair}
    hosts = "".join(f" {found[0]}" for found in others if found)
    # What the page may do at all, enforced by the browser: to reach nothing but itself (and a linked runtime).
    policy = (
        f"default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        f"connect-src 'self' blob:{hosts}; img-src 'self' blob: data:; style-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )
    small = [path.name for path in sorted(PAGE.iterdir())]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in small:
        digest.update((PAGE / name).read_bytes())
    names = ", ".join(model["name"] for model in content["models"])
    marks = {"__POLICY__": policy, "__TITLE__": escape(names), "__VERSION__": digest.hexdigest()[:16]}
    marks["__FILES__"] = json.dumps(["./", _SITE, *(name for name in small if name not in ("index.html", "sw.js"))])
    for name in small:
        text = (PAGE / name).read_text(encoding="utf-8")
        for mark, value in marks.items():
            text = text.replace(mark, value)
        (site / name).write_text(text, encoding="utf-8")
    content["files"] = sorted([_SITE, *(str(p.relative_to(site)) for p in site.rglob("*") if p.is_file())])
    (site / _SITE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _pairs(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [pair for pair in content["runtime"].values() if isinstance(pair, dict)]


def _files_of(out: Path) -> list[str]:
    """Return the files of the page that a folder holds; none where it holds no page."""
    try:
        found = json.loads((out / _SITE).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        if (out / "index.html").exists():
            raise UserError(f"{out / 'index.html'} exists, and is not such a page's; choose another folder") from None
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / _SITE} is not that of such a page; choose another folder") from error
    # The list is a file's word: nothing outside the folder is deleted by it.
    return [
        name
        for name in found
        if isinstance(name, str) and ".." not in Path(name).parts and not Path(name).is_absolute()
    ]


def _install(site: Path, out: Path, written: Iterable[str], before: Iterable[str]) -> None:
    """Put a finished page into its folder, the page's own scripts last."""
    try:
        for name in sorted(written, key=lambda name: ("/" not in name, name)):
            with replacing(out / name) as temporary:
                shutil.copyfile(site / name, temporary)
        for name in set(before) - set(written):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise WriteFailed(f"could not write {out}: {error.strerror or error}") from error

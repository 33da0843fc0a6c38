"""Exports a trained generator for other programs, and compares the file with the original."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

import qsattn_plugin
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry.interfaces import side_multiple
from qsattn_plugin.storage import replacing
from qsattn_plugin.translation.apply import smallest_side
from qsattn_plugin.translation.export.formats import FORMATS, Runner, Subject
from qsattn_plugin.translation.files import check_output, file_below
from qsattn_plugin.translation.load import main_generator
from qsattn_plugin.translation.translator import Translator

#: The largest difference allowed in translated images, on [-1, 1]: an eighth of the step between two 8-bit levels.
TOLERANCE = 1e-3


class Exported(NamedTuple):
    """The result of :func:`export`: the file, the largest difference found, and the shapes of the batches compared."""

    path: Path
    difference: float
    shapes: list[tuple[int, ...]]


def subject_of(translator: Translator, which: str | None = None, name: str | None = None) -> Subject:
    """Return the generator of a translator on the CPU with all that the formats need to know about it.

    ``which`` is the name of the loaded generator, where a method trains several; ``name`` that in the file (None: its
    recipe's name).

    Raises:
        UserError: the translator was not loaded from a file.
    """
    document, generator = translator.document, translator.generator
    generators = document.get("generators")
    if not generators:
        raise UserError("this generator was not loaded from a file: save it, load it, and export that")
    spec = generators[which or main_generator(generators)]
    multiple, least, channels = side_multiple(generator), smallest_side(generator), translator.channels
    made = "" if translator.out_channels == channels else f"of {translator.out_channels} channels, "
    about = (
        f"Images (batch, {channels}, height, width) in [-1, 1] to their translations, {made}likewise in [-1, 1]; "
        f"height and width multiples of {multiple} pixels, at least {least}."
    )
    for value_range, side in zip(translator.ranges, ("input", "output"), strict=True):
        if value_range is not None:
            values = (
                "limits of the file's number type"
                if value_range == "dtype"
                else f"values {value_range[0]:g} and {value_range[1]:g}"
            )
            about += f" -1 and 1 are the {values} in the {side}."
    if translator.trained:
        about += f" It was trained on pictures with a shorter side of {translator.trained} pixels."
    facts = {
        "name": name or (document.get("recipe") or {}).get("name") or spec["type"],
        "about": about,
        "generator": spec["type"],
        "arguments": spec["arguments"],
        "range": [-1.0, 1.0],
        "values": [list(one) if isinstance(one, tuple) else one for one in translator.ranges],
        "channels": channels,
        "out_channels": translator.out_channels,
        "multiple": multiple,
        "least": least,
        "trained": translator.trained,
        "step": document.get("step"),
        "written_by": f"qsattn-plugin {qsattn_plugin.__version__}",
    }
    return Subject(generator, spec["type"], spec["arguments"], channels, multiple, least, facts)


def export(subject: Subject, format: str, out: Path, overwrite: bool = False) -> Exported:
    """Write a generator in another format, read the file again, and compare it with the original.

    Args:
        subject: from :func:`subject_of`.
        format: "onnx", "torchscript", "pt2" or "cut".
        out: the file, or a folder for it.
        overwrite: replace the file if it exists.

    Raises:
        UserError: the format does not exist, needs a package that is not installed, cannot hold this generator, or
            the file's translations differ from the generator's by more than 1e-3 (the file is then removed).
        WriteFailed: the file could not be written.
    """
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r}{nearest(format, FORMATS)} (formats: {', '.join(FORMATS)})")
    chosen = FORMATS[format]
    path = place_of(subject, format, out)
    check_output(path, overwrite)
    chosen.check(subject)
    with torch.no_grad(), replacing(path) as temporary:
        try:
            chosen.write(subject, temporary)
        except (UserError, OSError):
            raise
        except Exception as error:  # exporters raise anything, depending on a generator's forward
            what = f"generator {subject.type!r} cannot be written as {format}"
            raise UserError(f"{what}: {_first_line(error)}") from error
        difference, shapes = _compare(subject, format, temporary)
    return Exported(path, difference, shapes)


def place_of(subject: Subject, format: str, out: Path) -> Path:
    """Return the file that an export is written to: ``out`` itself, or a file in it where it is a folder.

    A folder is one that exists, or a path without a suffix; for "cut", whose programs look for a fixed name, any path
    that does not end in ``.pth``.
    """
    chosen = FORMATS[format]
    if chosen.name:
        return out / chosen.name if out.is_dir() or out.suffix != chosen.suffix else out
    return file_below(out, subject.document["name"], chosen.suffix)


def shapes_for(subject: Subject) -> list[tuple[int, int, int, int]]:
    """Return the shapes of the three batches on which an export is compared: wide, high and square."""
    m = subject.multiple
    n = max(1, 64 // m)
    return [(b, subject.channels, h * m, w * m) for b, h, w in ((1, n, n + 1), (2, 2 * n, n), (3, n, n))]


def _compare(subject: Subject, format: str, path: Path) -> tuple[float, list[tuple[int, ...]]]:
    """Return a file's largest difference from the generator, and the shapes compared; raise UserError if too large."""
    refused = f"{format} export of {subject.type!r} refused, and its file removed"
    try:
        run: Runner = FORMATS[format].read(path, subject)
    except Exception as error:
        raise UserError(f"{refused}: the file cannot be read: {_first_line(error)}") from error
    draws = torch.Generator().manual_seed(1)
    largest = 0.0
    shapes: list[tuple[int, ...]] = [*shapes_for(subject)]
    for shape in shapes:
        images = torch.rand(shape, generator=draws) * 2 - 1
        size = " x ".join(map(str, shape))
        expected = subject.generator(images)
        try:
            found = run(images)
        except Exception as error:
            raise UserError(f"{refused}: it does not take images of {size}: {_first_line(error)}") from error
        if found.shape != expected.shape:
            made = " x ".join(map(str, found.shape))
            raise UserError(f"{refused}: it makes {made} of {size}")
        difference = (found - expected).abs().max().item()
        if math.isnan(difference) or difference > TOLERANCE:
            what = f"on random images of {size} it differs from the original by {difference:.2g}"
            raise UserError(f"{refused}: {what}, more than {TOLERANCE:g}")
        largest = max(largest, difference)
    return largest, shapes


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

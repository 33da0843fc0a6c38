"""The pictures of a report: the choice of evaluations, and their encoding within a budget."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.unreadable import UnreadableImage

#: The most characters that all pictures together take in the page.
BUDGET = 11_000_000
#: The most evaluations shown.
MOST = 48
#: Rather than showing fewer evaluations than this, pictures are made smaller.
FEW = 20
#: Widths in pixels that wider sheets are reduced to, tried in order until the budget is kept.
FRAME_WIDTHS = (1600, 1100, 750, 500, 320)


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """The pictures of one evaluation by name ("grid", or the tap of an entropy map)."""

    step: int
    pictures: dict[str, Picture]


def choose_evenly(count: int, most: int, always: Iterable[int] = ()) -> list[int]:
    """Return at most ``most`` of ``range(count)``: the first, the last, ``always``, and others evenly spaced.

    Required ones are included even if they are more than ``most``. The others are every second, or every third,
    fourth, sixth, ...: a growing count seldom changes the choice, so that encoded pictures can be reused.
    """
    musts = {i for i in (0, count - 1, *always) if 0 <= i < count}
    every = 1
    while len(kept := musts | set(range(0, count, every))) > most and every < count:
        every += max(1, every // 2)
    return sorted(kept)


def make_frames(
    sheets: Sequence[tuple[int, dict[str, Path]]], always: Iterable[int] = (), budget: int = BUDGET
) -> list[Frame]:
    """Encode the sheets of evaluations within a budget: first by showing fewer of them, then by making them smaller.

    Sheets are a step and its picture files, in order; missing and unreadable files are skipped. The first, the last and
    the steps ``always`` are kept; all data URIs together have at most ``budget`` characters.
    """
    # A name from the log may be one that no file can have: Path.is_file raises for some.
    found = [(step, {name: p for name, p in files.items() if os.path.isfile(p)}) for step, files in sheets]
    sheets = [(step, files) for step, files in found if files]
    wanted = set(always)
    musts = [i for i, (step, _) in enumerate(sheets) if step in wanted]
    frames: list[Frame] = []
    for width in FRAME_WIDTHS:
        most = MOST
        while most >= FEW:
            kept = choose_evenly(len(sheets), most, musts)
            frames = [Frame(sheets[i][0], _encode_all(sheets[i][1], width)) for i in kept]
            frames = [frame for frame in frames if frame.pictures]
            size = sum(len(p.uri) for frame in frames for p in frame.pictures.values())
            if size <= budget:
                return frames
            most = min(most, len(frames), int(len(frames) * budget / size) + 1) - 1
    ends = {sheets[i][0] for i in (0, -1, *musts)}
    return _within_budget(sorted(frames, key=lambda frame: frame.step not in ends), budget)


def _within_budget(frames: list[Frame], budget: int) -> list[Frame]:
    """Return the frames that fit the budget, chosen in the given order, sorted by step."""
    kept, size = [], 0
    for frame in frames:
        more = sum(len(p.uri) for p in frame.pictures.values())
        if size + more <= budget:
            kept.append(frame)
            size += more
    return sorted(kept, key=lambda frame: frame.step)


def _encode_all(files: dict[str, Path], width: int) -> dict[str, Picture]:
    found = {}
    for name, path in files.items():
        try:
            found[name] = _encode(path, path.stat().st_mtime_ns, width)
        except (OSError, UnreadableImage):  # gone, or truncated by a crash: show the others
            continue
    return found


@lru_cache(maxsize=4 * MOST)
def _encode(path: Path, changed: int, width: int) -> Picture:
    """Return :func:`encode_picture`; ``changed``, the file's time, is part of the cache key."""
    return encode_picture(path, width)


def encode_picture(path: Path, width: int) -> Picture:
    """Return a picture file as a JPEG of at most that width; raise UnreadableImage where it is damaged."""
    image = read_image(path).convert("RGB")
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=84, optimize=True)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}", *image.size)


def find_maps(folder: Path) -> dict[int, dict[str, Path]]:
    """Return the entropy maps in a folder, by step and tap (see :mod:`qsattn_plugin.training.report.maps`)."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("step-*-tap-*.png"), key=_natural):
        if match := re.fullmatch(r"step-(\d+)-tap-(.+)", path.stem):
            found.setdefault(int(match[1]), {})[match[2]] = path
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers in names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

"""Archives: zip and tar with odd names, headers and damaged bytes."""

from __future__ import annotations

import random
import shutil
import tarfile
from pathlib import Path

from qsattn_plugin.data.public.unpack import unpack
from tests.fuzz import Case, damage
from tests.web import tarred, zipped

_NAMES = (
    "a.png",
    "a/b.png",
    "",
    ".",
    "..",
    "../x",
    "/x",
    "a//b",
    "a\\b",
    "n" * 300,
    "\udcff",
    "\x1b[2J",
    "é",
    "con:",
    "a\0b",
)


def _member(draw: random.Random, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = draw.choice((b"0", b"1", b"2", b"5", b"L", b"x", b"g", b"S", b"V", b"\xff"))
    info.pax_headers = {
        draw.choice(("GNU.sparse.major", "GNU.sparse.size", "size", "path")): draw.choice(("1", "-1", "x"))
    }
    info.linkname = draw.choice(_NAMES)
    return info


def make(draw: random.Random, folder: Path) -> Case:
    shutil.rmtree(folder / "out", ignore_errors=True)
    names = draw.sample(_NAMES, draw.randint(1, 4))
    members = {name: draw.randbytes(draw.choice((0, 10, 3000))) for name in names}
    if draw.random() < 0.5:
        content = zipped(members)
    else:
        odd = {name: _member(draw, name) if draw.random() < 0.4 else value for name, value in members.items()}
        content = tarred(odd, draw.choice(("w", "w", "w:gz", "w:xz")))
    if draw.random() < 0.7:
        content = damage(draw, content)
    path = folder / "archive"
    path.write_bytes(content)

    def run() -> None:
        unpack(path, folder / "out", most_bytes=1 << 20, most_files=10)
        inside = (folder / "out").resolve()
        assert all(found.resolve().is_relative_to(inside) for found in inside.rglob("*"))

    return run

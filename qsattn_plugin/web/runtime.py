"""The runtime of the page, onnxruntime-web: copied from an installed npm package, or linked with its hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qsattn_plugin.errors import UserError

#: The version that is linked, and where: a mirror of npm whose addresses name a version for good.
VERSION = "1.30.0"
ADDRESS = "https://cdn.jsdelivr.net/npm/onnxruntime-web@{}/dist/"

#: Backend -> its script and its WebAssembly. The second also runs on the CPU what a GPU cannot.
FILES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}

#: File of that version -> bytes, and its SHA-384 as browsers write it.
KNOWN = {
    "ort.wasm.bundle.min.mjs": (73054, "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    "ort-wasm-simd-threaded.wasm": (14239897, "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
    "ort.webgpu.bundle.min.mjs": (117732, "1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f"),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        26781914,
        "EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
    ),
}


def file_facts(path: Path, url: str) -> dict[str, Any]:
    """Return what the page knows of a file: its address, size, and hash as browsers compare it."""
    content = path.read_bytes()
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
    return {"url": url, "bytes": len(content), "integrity": f"sha384-{digest}"}


def linked() -> dict[str, Any]:
    """Return the runtime's files as the page finds them on the web."""

    def find(name: str) -> dict[str, Any]:
        size, digest = KNOWN[name]
        return {"url": ADDRESS.format(VERSION) + name, "bytes": size, "integrity": f"sha384-{digest}"}

    return _described(VERSION, find)


def copied(package: Path, site: Path) -> dict[str, Any]:
    """Copy the runtime from an installed package, any version that has these files; return them as the page finds them.

    Raises:
        UserError: the folder is not one of onnxruntime-web.
    """
    dist, about = package / "dist", package / "package.json"
    missing = [name for pair in FILES.values() for name in pair if not (dist / name).is_file()]
    if missing or not about.is_file():
        lacks = f"{dist / missing[0]}" if missing else f"{about}"
        how = f"`npm install onnxruntime-web@{VERSION}` makes node_modules/onnxruntime-web"
        raise UserError(f"{package} is not an installed onnxruntime-web: there is no {lacks}; {how}")

    def copy(name: str) -> dict[str, Any]:
        target = site / "runtime" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dist / name, target)
        return file_facts(target, f"runtime/{name}")

    return _described(json.loads(about.read_text(encoding="utf-8"))["version"], copy)


def _described(version: str, describe: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    found = {kind: {"script": describe(pair[0]), "wasm": describe(pair[1])} for kind, pair in FILES.items()}
    return {"version": version, **found}

"""Tables of many trainings: one JSON line each, kept when the command is stopped, and a page that shows them."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qsattn_plugin.errors import UserError

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Return the lines that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, line: Line) -> None:
    """Print a line, and append it to a file."""
    print(json.dumps(line), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def folder_name(*parts: object) -> str:
    """Return a run's folder name from what tells it apart."""
    return "".join(c if c.isalnum() else "-" for c in "-".join(map(str, parts)))


def run_module(*arguments: str) -> str:
    """Run a module of Python in a process of its own, and return the last line that it printed.

    Raises:
        UserError: it failed; the message is what it said.
    """
    ended = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"{' '.join(arguments)}: {ended.stderr}")
    return ended.stdout.splitlines()[-1]


def machine() -> Line:
    """Return what a line says of where it was measured."""
    processors = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    cpu = processors[0].partition(": ")[2] if processors else ""
    return {"cpu": cpu, "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def spread(name: str, lines: Sequence[Line], digits: int) -> str:
    """Return the mean over lines that trained, and their range."""
    values = [line[name] for line in lines if name in line and "failed" not in line]
    if not values:
        return "-"
    shown = f"{statistics.mean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def count(lines: Sequence[Line]) -> str:
    """Return how many lines there are, and how many of them did not train."""
    failed = sum("failed" in line for line in lines)
    return f"{len(lines)}" + (f", {failed} failed" if failed else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) + "\n"

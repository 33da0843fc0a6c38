"""Small defects, put into the code one at a time: which of them do the tests notice?

    python -m benchmarks.mutants [--only WORD]

copies the package and its tests, changes one line of the copy, runs the test files named beside it, and writes
docs/measured/mutants.md. A mutant lives where all of these pass. Each takes 5 to 60 seconds of one core.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A line of a file, what takes its place, and the tests that should notice."""

    file: str
    line: str
    instead: str
    tests: str


PACKAGE = "qsattn_plugin"
MUTANTS = [
    # where to look
    Mutant("samplers/points.py", "root - (root ** len(sizes) > fair)", "root", "samplers dimensions"),
    Mutant(
        "samplers/points.py", "(2 * torch.arange(n, device=features.device) + 1)", "(2 * torch.arange(n))", "samplers"
    ),
    Mutant(
        "samplers/points.py",
        "ranks = torch.arange(chosen.shape[1] + 1, 1, -1,",
        "ranks = torch.arange(2, chosen.shape[1] + 2,",
        "samplers",
    ),
    Mutant(
        "samplers/points.py",
        "select_queries(-scores.gather(1, seen)",
        "select_queries(scores.gather(1, seen)",
        "samplers",
    ),
    Mutant("samplers/qsattn.py", "size <= self.positions", "size < self.positions", "samplers"),
    Mutant(
        "samplers/qsattn.py",
        'self.router = in_window if attention == "local"',
        'self.router = in_window if attention != "global"',
        "samplers",
    ),
    Mutant("samplers/qsattn.py", "log_entropy = -significance if", "log_entropy = significance if", "samplers"),
    Mutant("samplers/qsattn.py", "ordered[(last * q + 50) // 100]", "ordered[last * q // 100]", "samplers"),
    Mutant("attention/__init__.py", "descending=True, stable=True", "descending=True, stable=False", "attention"),
    Mutant("attention/__init__.py", ".masked_fill(~inside, -torch.inf)", "", "attention routes"),
    Mutant("attention/routes.py", "return self._with(rows=self.rows.detach())", "return self", "routes losses"),
    # batches
    Mutant("data/batches.py", "_ORDER, _TOP, _LEFT = 0, 1, 2", "_ORDER, _TOP, _LEFT = 0, 1, 1", "batches"),
    Mutant(
        "data/batches.py",
        "(step * self.world + self.rank) * self.batch_size",
        "(step + self.rank) * self.batch_size",
        "batches",
    ),
    Mutant("data/batches.py", "% (image.shape[1] - crop + 1)", "% (image.shape[1] - crop or 1)", "batches"),
    Mutant(
        "data/batches.py",
        "derive_seed(self._seed, _ORDER, self._number, epoch)",
        "derive_seed(self._seed, _ORDER, self._number)",
        "batches",
    ),
    Mutant(
        "training/loader.py",
        "derive_seed(self.seed, _AUGMENT, step, self.rank, number)",
        "derive_seed(self.seed, _AUGMENT, step, self.rank)",
        "loader",
    ),
    Mutant("data/preprocess.py", "crop and side <= FACTOR * crop", "crop", "sizes"),
    # losses
    Mutant("losses/contrastive.py", "positives = positives.detach()", "pass", "losses objectives"),
    Mutant(
        "losses/contrastive.py",
        "anchors.flatten(0, 1)[None], positives.flatten(0, 1)[None]",
        "anchors, positives",
        "losses objectives",
    ),
    Mutant("losses/adversarial.py", "F.relu(1 + scores)", "F.relu(scores)", "losses"),
    Mutant(
        "losses/adversarial.py",
        "sum(map(self.fool, fake)) / len(fake)",
        "sum(map(self.fool, fake))",
        "losses discriminators",
    ),
    Mutant("losses/lsesim.py", "(f - mean).flatten(2)", "f.flatten(2)", "objectives"),
    Mutant("losses/lsesim.py", "[route.detach() for route in pair.routes])", "pair.routes)", "objectives"),
    # averages and sessions
    Mutant("training/ema.py", "(1 + step) / (10 + step)", "1.0", "fit never_lose train_settings"),
    Mutant("training/ema.py", "a.copy_(n)", "pass", "fit never_lose train_settings generators"),
    Mutant(
        "training/session.py",
        "torch.manual_seed(derive_seed(self.recipe.train.seed, _GLOBAL, self.step, loader.rank))",
        "pass",
        "fit never_lose train_settings",
    ),
    # tiles
    Mutant(
        "translation/tiles/steps.py",
        "Span((want.start - 1) // 2, want.stop // 2 + 1)",
        "Span(want.start // 2, want.stop // 2 + 1)",
        "translate_tiled",
    ),
    Mutant("translation/tiles/steps.py", "abs(last - abs(i))", "abs(last - abs(i) - 1)", "translate_tiled"),
    Mutant("translation/tiles/moments.py", "difference.square() * self.count * n / total", "0", "translate_tiled"),
    Mutant(
        "translation/tiles/sweeps.py",
        "sum(sizes[p] for p in have | want) > limit",
        "sum(sizes[p] for p in want) > limit",
        "translate_tiled",
    ),
    # files
    Mutant("storage/checkpoints.py", "if s <= step][: -self.keep]", "][: -self.keep]", "storage never_lose"),
    Mutant("storage/__init__.py", "temporary.chmod(0o666 & ~_umask())", "pass", "storage"),
    Mutant("storage/__init__.py", "copies[name] = tensor.clone()", "pass", "storage"),
]


def notices(mutant: Mutant, copy: Path) -> str:
    """Return the first test that fails with a mutant; "" if none does."""
    path = copy / PACKAGE / mutant.file
    text = path.read_text()
    if text.count(mutant.line) != 1:
        raise SystemExit(f"{mutant.file}: {text.count(mutant.line)} times {mutant.line!r}, expected once")
    path.write_text(text.replace(mutant.line, mutant.instead))
    try:
        files = [f"tests/test_{name}.py" for name in mutant.tests.split()]
        command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "--tb=no", *files]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text)
    if result.returncode not in (0, 1):
        raise SystemExit(result.stdout + result.stderr)
    failed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].removeprefix("tests/") if result.returncode else ""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose file has this in its name; the page is not written")
    only = parser.parse_args().only
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        for name in filter(None, names):
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(folder) / name)
        for mutant in MUTANTS:
            if only in mutant.file:
                test = notices(mutant, Path(folder))
                rows.append((mutant, test))
                print(f"{'noticed' if test else 'LIVES  '}  {mutant.file}: {mutant.instead}  {test}", flush=True)
    lives = sum(not test for _, test in rows)
    if not only:
        table = [f"| `{m.file}` | `{m.line}` | `{m.instead}` | {f'`{t}`' if t else 'none'} |" for m, t in rows]
        page = PAGE.format(count=len(rows), lives=lives, table="\n".join(table))
        (ROOT / "docs" / "measured" / "mutants.md").write_text(page)


PAGE = """# Mutants

`python -m benchmarks.mutants` puts {count} small defects into the code, one at a time, and runs the test files that
should notice. {lives} of them live.

| file | line | instead | the first test that fails |
|---|---|---|---|
{table}

Thirty mutants of an earlier round, of the same modules, found ten that lived, and the first run of these found two more
(draws of augmentations, the umask); each got a test. Without its correction, `root`, a grid has other numbers of rows
and columns: as often more positions as fewer, never more than asked for, so that no test can say which is right.
"""

if __name__ == "__main__":
    main()

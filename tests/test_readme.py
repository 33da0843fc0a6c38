"""What the README says works: its commands exist, its recipe loads, its Python runs, its pictures are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from qsattn_plugin.cli import main
from qsattn_plugin.registry.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def indented(text: str) -> list[str]:
    """The lines of indented code blocks, comments cut off and continued lines in one."""
    lines = text.replace("\\\n", "").splitlines()
    return [line[4:].split(" #")[0].rstrip() for line in lines if line.startswith("    ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: Path(value))  # whether there is such a file
    for line in indented(page.read_text(encoding="utf-8")):
        if line.startswith("qsattn "):
            words = shlex.split(re.split(" > | && ", line)[0])[1:]
            command = main.get_command(None, words[0])
            assert command is not None, line
            command.make_context(words[0], words[1:])  # raises on an unknown option or a missing argument


def test_the_recipe_loads(tmp_path):
    start = README.index("    extends: horse2zebra")
    text = "\n".join(line[4:] for line in README[start:].split("\n\n")[0].splitlines())
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.name == "my-zebras"
    assert recipe.sampler.arguments["taps"] == (12, 16)


@pytest.mark.parametrize("line", re.findall(r"`((?:method|sampler|generator|encoder|augmentations): [^`]+)`", README))
def test_each_swap_is_one_line_of_a_recipe(line, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: horse2zebra\n{line}\n")
    load_recipe(tmp_path / "mine.yaml")


@pytest.mark.usefixtures("parts_go_again")
def test_the_python_runs(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["zebra"].size == (70, 50) and names["batch"].shape == (1, 3, 64, 64)
    assert names["anchors"][0].shape == names["positives"][0].shape == (1, 256, 256)
    image = names["torch"].zeros(1, 3, 2, 2)
    assert float(names["Darker"](by=0.5)(image, None).max()) == -0.5


@pytest.mark.usefixtures("parts_go_again")
def test_a_small_recipe_with_the_example_part_builds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "darker.py").write_text(re.findall(r"```python\n(.*?)```", README, re.S)[-1])
    text = "extends: toy\nimport: [./darker.py]\naugmentations: [{type: darker, by: 0.2}]\n"
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.build("augmentations.0").by == 0.2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_code_are_where_they_are_said_to_be(page):
    for path in re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|yaml|json|jsonl|md))\b", page.read_text(encoding="utf-8")):
        assert any((root / path).is_file() for root in (ROOT, ROOT / "qsattn_plugin")), f"{page.name} names {path}"

"""Files that are written from the code are current; ``python -m tests.test_generated`` writes them anew."""

# ruff: noqa: F401, F811 - pytest finds fixtures by their names in the module
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qsattn_plugin.registry import BUILTIN, REGISTRY, list_parts
from qsattn_plugin.registry.parts import IndexedPart, Part, argument_docs, describe_part
from qsattn_plugin.registry.pretrained import INDEX, entries
from tests.recipe_parts import GOOD, load, parts

ROOT = Path(__file__).parents[1]


def builtin() -> list[Part]:
    """The built-in parts, imported."""
    list_parts()
    REGISTRY.import_builtin()
    ours = [part for part in list_parts() if part.origin[0].startswith("qsattn_plugin.")]
    assert not any(isinstance(part, IndexedPart) for part in ours)
    return ours


def index() -> str:
    """The index of the built-in parts, one entry a line."""
    return "[\n" + ",\n".join(json.dumps(describe_part(part)) for part in builtin()) + "\n]\n"


def readme() -> str:
    """README with its table of the published models, from their index."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = "<!-- models: python -m tests.test_generated -->\n", "<!-- end of models -->"
    before, _, rest = text.partition(start)
    rows = ["| model | what it does | MB | scores |", "|---|---|---|---|"]
    for name, entry in entries().items():
        size = f"{(INDEX.parent / 'weights' / entry.file).stat().st_size / 1e6:.1f}" if entry.file else ""
        numbers = [
            f"{key} {value:g}" for key, value in entry.card.get("scores", {}).items() if isinstance(value, float)
        ]
        rows.append(f"| `{name}` | {entry.summary} | {size} | {', '.join(numbers[:2])} |")
    return f"{before}{start}\n" + "\n".join(rows) + f"\n\n{end}{rest.partition(end)[2]}"


def page() -> str:
    """The page of every key, by a process that knows none of the tests' parts."""
    command = [sys.executable, "-m", "qsattn_plugin.cli", "schema", "--markdown"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


#: File -> what writes it.
GENERATED = {"registry/parts.json": index, "docs/recipes.md": page, "README.md": readme}


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_generated_is_current(name):
    again = f"{name} is not what the code says; run python -m {__name__} and look at the difference"
    assert (ROOT / name).read_text(encoding="utf-8") == GENERATED[name](), again


def test_the_index_describes_parts_as_they_are():
    entries = {(e["kind"], e["name"]): IndexedPart(e, lambda: None) for e in json.loads(index())}
    assert {kind for kind, _ in entries} == set(BUILTIN)
    for part in builtin():
        indexed = entries[part.kind, part.name]
        assert (indexed.tags, indexed.summary, indexed.docs) == (part.tags, part.summary, argument_docs(part.target))
        assert indexed.defaults == part.defaults
        ours, theirs = indexed.signature.parameters, part.signature.parameters
        assert list(ours) == list(theirs)
        for name, parameter in theirs.items():
            assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default)
            assert str(ours[name].annotation) == str(parameter.annotation)
            if "." not in str(parameter.annotation):  # no stand-in for a class that is not imported
                assert ours[name].annotation == parameter.annotation


def test_what_the_index_does_not_know_yet_is_found_in_the_code(load, tmp_path, monkeypatch):
    """While a part is written the index is behind."""
    (tmp_path / "later_than_the_index.py").write_text(
        "from qsattn_plugin.registry import register\n"
        "@register('sampler', 'attention')\ndef attention(queries: int = 1, late: float = 0.5): return late\n"
        "@register('sampler', 'new')\ndef new(): return 'new'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    behind = {"module": "later_than_the_index", "qualname": "attention", "arguments": {}}
    behind |= {"kind": "sampler", "name": "attention", "tags": [], "summary": "", "docs": {}, "defaults": {}}
    key = "sampler", "attention"
    monkeypatch.setitem(REGISTRY._parts, key, IndexedPart(behind, lambda: REGISTRY._imported(*key)))
    monkeypatch.setitem(REGISTRY._builtin, "sampler", ("later_than_the_index",))
    assert load(GOOD).build("sampler") == ("points", 64)
    assert "later_than_the_index" not in sys.modules
    assert load(GOOD + "sampler: {type: attention, late: 2}").build("sampler") == 2
    assert load(GOOD + "sampler: new").build("sampler") == "new"


if __name__ == "__main__":
    for name, write in GENERATED.items():
        (ROOT / name).write_text(write(), encoding="utf-8")

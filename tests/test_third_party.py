"""Parts of somebody else's package, and of a file beside a recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qsattn_plugin.registry import REGISTRY, PartError, PartsWarning, Registry
from tests.conftest import TINY
from tests.test_cli import qsattn, refused

PACKAGE = Path(__file__).parent / "third_party"


def offer(site: Path, package: str, code: str) -> None:
    """Install a package of one module into a folder: its code, and the metadata that pip would write."""
    (site / f"{package}.py").write_text(textwrap.dedent(code))
    info = site / f"{package}-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[qsattn_plugin.parts]\n{package} = {package}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package of ``tests/third_party`` installed by pip, and a broken one beside it."""
    source = tmp_path_factory.mktemp("source") / "package"  # building leaves folders behind
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", site, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    offer(site, "broken_parts", "raise RuntimeError('no such\\ndevice')")
    return site


RECIPE = """
extends: toy
generator: {type: striped, width: 4}
sampler: {type: diagonal, queries: 16}
"""

PROGRAM = """
import json, sys
from qsattn_plugin.cli import main
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments, flush=True)
    print("$", *arguments, file=sys.stderr, flush=True)
    main(arguments, standalone_mode=False)
"""


def test_an_installed_package_is_listed_shown_and_fitted(site, workplace):
    (workplace / "mine.yaml").write_text(RECIPE)
    keep = [o for o in TINY if not o.startswith(("generator", "sampler"))]
    commands = [
        ["build", "mine.yaml", "--run", "run", *(s for o in keep for s in ("-s", o))],
        ["fit", "run", "--max-steps", "2"],
        ["list"],
        ["show", "generator/striped"],
    ]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out, said = done.stdout, done.stderr
    assert "generator      striped" in out
    assert "sampler        diagonal" in out
    assert "stopped at step 2 of 4" in said
    assert re.search(r"^generator/striped +A generator of three convolutions", out, re.MULTILINE)
    assert "sampler/diagonal" in out
    assert "generator/resnet_9blocks" in out
    assert "width: integer = 8" in out
    assert "channels between them." in out
    # The broken one is named once, in a line of its own, by the command that first needed other people's parts.
    warned = [line for line in said.splitlines() if "broken_parts" in line]
    assert warned == [
        "Warning: the parts of broken_parts 2.0 are left out, importing broken_parts failed: "
        "RuntimeError: no such device"
    ]
    assert "Traceback" not in said


@pytest.fixture
def offering(tmp_path, monkeypatch):
    """Offer packages, given by their code, in a folder that can be imported from; forget them afterwards."""
    known = set(sys.modules)

    def install(**packages: str) -> Registry:
        monkeypatch.syspath_prepend(tmp_path)
        for package, code in packages.items():
            offer(tmp_path, package, code)
        for kind in ("sampler", "generator"):
            own = f"from third_party_test import REGISTRY\n@REGISTRY.register({kind!r}, 'own')\ndef own(): pass\n"
            (tmp_path / f"own_{kind}s.py").write_text(own)
        registry = Registry({"sampler": ("own_samplers",), "generator": ("own_generators",)}, "qsattn_plugin.parts")
        monkeypatch.setitem(sys.modules, "third_party_test", type(sys)("third_party_test"))
        sys.modules["third_party_test"].REGISTRY = registry
        return registry

    yield install
    for name in set(sys.modules) - known:
        del sys.modules[name]


GOOD = """
    from third_party_test import REGISTRY

    @REGISTRY.register("sampler", "theirs")
    def theirs(): pass
"""


def test_a_built_in_name_does_not_import_other_packages(offering):
    registry = offering(good_parts=GOOD)
    assert registry.find("sampler", "own").target.__module__ == "own_samplers"
    assert "good_parts" not in sys.modules
    assert registry.find("sampler", "theirs").target.__module__ == "good_parts"
    assert [part.name for part in registry.list_parts("sampler")] == ["own", "theirs"]


def test_listing_and_a_misspelt_name_know_other_packages(offering):
    assert [part.name for part in offering(good_parts=GOOD).list_parts("samplers")] == ["own", "theirs"]
    registry = Registry({}, "qsattn_plugin.parts")
    with pytest.raises(PartError, match="no sampler 'their'"):
        registry.find("sampler", "their")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (GOOD + "    import no_such_module_for_test", "ModuleNotFoundError: No module named 'no_such_module_for_test'"),
        (GOOD + "    raise SystemExit(3)", "SystemExit: 3"),
        (GOOD + "    def", "SyntaxError: "),
        (GOOD.replace("theirs", "own"), "sampler 'own' is already registered by own_samplers"),
        # The newcomer's mistake, too, where the kind's built-in parts are not imported yet.
        (GOOD.replace('"sampler", "theirs"', '"generator", "own"'), "generator 'own' is already registered by own_gen"),
        (GOOD + GOOD.replace('"sampler"', '"samplr"'), "there is no kind 'samplr'"),
    ],
)
def test_a_broken_package_is_left_out_whole(offering, code, why):
    registry = offering(a_broken_one=code, good_parts=GOOD.replace("theirs", "good"))
    with pytest.warns(PartsWarning) as warned:
        found = registry.find("sampler", "good")
    assert found.target.__module__ == "good_parts"
    assert len(warned) == 1
    text = str(warned[0].message)
    assert text.startswith("the parts of a_broken_one 2.0 are left out, importing a_broken_one failed: ")
    assert why in text
    assert "\n" not in text
    assert [part.name for part in registry.list_parts("sampler")] == ["good", "own"]
    assert [part.target.__module__ for part in registry.list_parts("generator")] == ["own_generators"]


BESIDE = """
import torch
from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import ResnetGenerator


@register("generator", "two_blocks")
class TwoBlocks(ResnetGenerator):
    '''Two blocks.

    Args:
        width: channels of the stem.
    '''

    blocks = 2

    def __init__(self, width: int = 4):
        super().__init__(width)
"""


@pytest.fixture
def forgetting():
    """Take the parts of recipes' files out of the one registry that all tests share."""
    yield
    for key in [k for k, part in REGISTRY._parts.items() if part.target.__module__.startswith("recipe_parts_")]:
        del REGISTRY._parts[key]


@pytest.mark.parametrize("imported", ["[parts_beside.py]", "[parts_beside]", "[below/parts_beside.py]"])
def test_a_recipe_imports_a_file_beside_it(workplace, forgetting, imported):
    folder = workplace / ("recipes/below" if "below" in imported else "recipes")
    folder.mkdir(parents=True)
    (folder / "parts_beside.py").write_text(BESIDE)
    (workplace / "recipes/mine.yaml").write_text(
        f"extends: toy\nimport: {imported}\ngenerator: {{type: two_blocks}}\nsampler: {{taps: [12]}}\n"
    )
    settings = [s for o in TINY for s in ("-s", o)]
    built = qsattn("build", "recipes/mine.yaml", "--run", "run", *settings)
    assert built.exit_code == 0, built.output
    assert "two_blocks" in built.output
    # The run knows the file by its whole path, so it can be carried on with from anywhere.
    assert str(folder / "parts_beside.py") in (workplace / "run/recipe.yaml").read_text()
    fitted = qsattn("fit", "run", "--max-steps", "1")
    assert "stopped at step 1 of 4" in fitted.output, fitted.output


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "mine.yaml:1: import: "),
        ("1 / 0", "division by zero (beside.py, line 1)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_recipes_line(workplace, code, message):
    if code is not None:
        (workplace / "beside.py").write_text(code)
    (workplace / "mine.yaml").write_text("import: [beside.py]\nextends: toy\n")
    text = refused("build", "mine.yaml")
    assert message in text
    assert "beside.py" in text

"""The package as others get it: the wheel's contents, the bare checkout, and which room may import which."""

from __future__ import annotations

import ast
import configparser
import importlib
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qsattn_plugin
from qsattn_plugin.cli import NEEDED

ROOT = Path(__file__).parents[1]

#: Folder of the checkout -> package below which it installs.
ROOMS = {"qsattn_plugin": "qsattn_plugin", "registry": "qsattn_plugin.registry", "cli": "qsattn_plugin.cli"}


def modules() -> dict[str, Path]:
    """Every module of the checkout by the name that it is imported by."""
    found = {}
    for folder, package in ROOMS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the checkout so that no build folder is left in it."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "runs", "*.egg-info", "build", "__pycache__", "tests", "docs", "node_modules"
    )
    shutil.copytree(ROOT, copy, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, copy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_recipe_and_no_general_names(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"qsattn_plugin"}
    for module, path in modules().items():
        inside = module.replace(".", "/")
        expected = f"{inside}/__init__.py" if path.name == "__init__.py" else f"{inside}.py"
        assert expected in names
    for recipe in (ROOT / "registry" / "recipes").glob("*.yaml"):
        assert f"qsattn_plugin/registry/recipes/{recipe.name}" in names
    for data in (*(ROOT / "registry").glob("*.yaml"), *(ROOT / "registry" / "weights").iterdir()):
        assert f"qsattn_plugin/{data.relative_to(ROOT)}" in names
    for name in ("page.html", "layout.html", "style.css", "charts.js", "films.js"):
        assert f"qsattn_plugin/training/report/{name}" in names
    for path in (ROOT / "qsattn_plugin" / "web" / "page").iterdir():
        assert f"qsattn_plugin/web/page/{path.name}" in names


def test_the_installed_wheel_works_from_anywhere(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import qsattn_plugin, qsattn_plugin.registry.recipe as r\n"
        "assert qsattn_plugin.__file__.startswith(sys.argv[1]), qsattn_plugin.__file__\n"
        "print(r.load_recipe('toy').method, len(qsattn_plugin.registry.list_parts('generators')) > 1)\n"
        "for name in ('registry', 'cli'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: continue\n"
        "    raise SystemExit(f'a top-level {name} can be imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, site], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "qsattn True\n", done.stderr


def test_a_bare_checkout_works_without_installation(tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import qsattn_plugin.registry as r\n"
        "assert 'registry' not in sys.modules\n"
        "print(r.create('generator', 'resnet_4blocks', width=2).multiple)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr


def test_importing_the_package_costs_nothing():
    program = "import sys, qsattn_plugin; print({'torch', 'yaml', 'click', 'PIL'} & sys.modules.keys() or 'nothing')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "nothing\n", done.stderr


def test_every_public_name_resolves():
    for name in qsattn_plugin.__all__:
        assert getattr(qsattn_plugin, name) is not None
    assert set(qsattn_plugin.__all__) <= set(dir(qsattn_plugin))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = qsattn_plugin.nonsense


def test_earlier_names_of_modules_still_import(recwarn):
    for old, new in qsattn_plugin._MOVED.items():
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
            assert importlib.import_module(old) is importlib.import_module(new)
        assert importlib.import_module(new).__spec__.name == new


def test_every_module_imports_and_has_a_docstring():
    for name in modules():
        if not name.endswith("__main__"):
            assert importlib.import_module(name).__doc__, name
    assert {m.name for m in pkgutil.iter_modules(qsattn_plugin.__path__)} >= {"registry", "cli", "data"}


def test_requirements_have_lower_bounds_only():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"].split()
    assert all(">=" in n and not any(c in n for c in ("<", "==", "~")) for n in needed)
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    names = {n.split(">=")[0].lower() for n in needed}
    assert names <= pinned
    assert names == {*NEEDED.values(), "click"}


#: Ground first. A module may import what lies on a lower floor, or before it on its own: ``room`` is the room's own
#: module, ``room.*`` all that lies in it.
FLOORS = [
    {f"qsattn_plugin{m}" for m in ("", ".errors", ".text", ".registry", ".registry.interfaces", ".registry.parts")},
    {"qsattn_plugin.devices", "qsattn_plugin.distances"},
    {
        f"qsattn_plugin.{m}"
        for m in ("attention", "attention.*", "losses", "losses.*", "projection", "storage", "storage.*")
    },
    {"qsattn_plugin.samplers", "qsattn_plugin.samplers.*"},
    {"qsattn_plugin.forks", "qsattn_plugin.forks.*"},
    {"qsattn_plugin.registry.*"},
    {"qsattn_plugin.data", "qsattn_plugin.data.*"},
    {"qsattn_plugin.translation", "qsattn_plugin.translation.*"},
    {"qsattn_plugin.evaluation", "qsattn_plugin.evaluation.*"},
    {"qsattn_plugin.web", "qsattn_plugin.web.*"},
    {"qsattn_plugin.training", "qsattn_plugin.training.*"},
    {"qsattn_plugin.cli", "qsattn_plugin.cli.*", "qsattn_plugin.__main__"},
]


def floor(module: str) -> int:
    """Return the number of a module's floor: its own, or that of the nearest room that it lies in."""
    rooms = [module, *(f"{module.rsplit('.', n)[0]}.*" for n in range(1, module.count(".") + 1))]
    for room in rooms:
        for number, there in enumerate(FLOORS):
            if room in there:
                return number
    raise AssertionError(f"{module} stands on no floor: give it one in this test")


def imported(path: Path, known: set[str]) -> set[str]:
    """The package's own modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not found & {"registry", "cli"}, f"{path} imports a room by its folder's name"
    return found & known


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=list(modules()))
def test_imports_run_downwards(module, path):
    mine = floor(module)
    for other in imported(path, set(modules())):
        assert floor(other) <= mine, f"{module} imports {other} from a higher floor"


def test_no_module_imports_itself_through_others():
    """Imports for type checkers and inside functions included."""
    known = modules()
    imports = {name: imported(path, set(known)) - {name} for name, path in known.items()}
    # `from room import name` imports the room's own module; what that gathers of its room is no circle.
    for name in imports:
        imports[name] -= {room for room in imports[name] if name.startswith(f"{room}.")}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for other in sorted(imports[module]):
                walk(other, (*path, module))
            done.add(module)

    for name in known:
        walk(name, ())


def test_rooms_are_not_crowded():
    """A room with more files wants another room; see CONTRIBUTING.md."""
    most = {"qsattn_plugin": 7, "registry": 10}
    for folder in {path.parent for path in modules().values()}:
        name = str(folder.relative_to(ROOT))
        assert len(list(folder.glob("*.py"))) <= most.get(name, 20), f"{name} is crowded"

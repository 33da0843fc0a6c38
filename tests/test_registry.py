"""The registry: parts by kind and name, and what their docstrings say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qsattn_plugin.registry import KINDS, PartError, Registry, create
from qsattn_plugin.registry.parts import argument_docs


@pytest.fixture
def parts() -> Registry:
    registry = Registry()

    @registry.register("generator", "unet", tags=("skip",))
    class Unet:
        """Skips.

        More about it.
        """

        def __init__(self, depth: int, width: int = 8):
            self.depth, self.width = depth, width

    @registry.register("sampler", "grid")
    def grid(**anything):
        return anything

    @registry.register("generator", "plain")
    class Plain(Unet):
        def __init__(self):
            super().__init__(1)

    return registry


def test_create_finds_and_builds(parts):
    built = parts.create("generator", "unet", depth=3)
    assert (built.depth, built.width) == (3, 8)
    assert parts.create("sampler", "grid", kind=1, name=2) == {"kind": 1, "name": 2}  # names of create's own


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "message", "argument"),
    [
        ("generater", "unet", {}, "there is no kind 'generater'; did you mean 'generator'?", None),
        (
            "generator",
            "unett",
            {},
            "no generator 'unett'; did you mean 'unet'? (generators: plain, unet)",
            None,
        ),
        ("encoder", "x", {}, "there is no encoder 'x' (encoders: none)", None),
        ("generator", "unet", {"dept": 1}, "takes no argument 'dept'; did you mean 'depth'?", "dept"),
        ("generator", "unet", {"width": 1}, "needs the argument 'depth'", "depth"),
    ],
)
def test_mistakes_are_named(parts, kind, name, arguments, message, argument):
    with pytest.raises(PartError) as error:
        parts.create(kind, name, **arguments)
    assert message in str(error.value)
    assert error.value.argument == argument


def test_a_name_is_given_once(parts):
    def other():
        pass

    with pytest.raises(PartError, match="already registered by"):
        parts.register("generator", "unet")(other)
    # The same definition again, as after importlib.reload, is no clash.
    again = parts.find("generator", "unet").target
    assert parts.register("generator", "unet")(again) is again


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["plain", "unet", "grid"]),
        ("generators", ["plain", "unet"]),
        ("generator", ["plain", "unet"]),
        ("u*", ["unet"]),
        ("sampler/*", ["grid"]),
        ("skip", ["unet"]),
        ("z*", []),
    ],
)
def test_list_parts(parts, pattern, names):
    assert [part.name for part in parts.list_parts(pattern)] == names


def test_list_parts_suggests(parts):
    with pytest.raises(PartError, match="did you mean 'unet'"):
        parts.list_parts("uned")


def test_summary_is_the_parts_own_first_line(parts):
    assert parts.find("generator", "unet").summary == "Skips."
    assert parts.find("generator", "plain").summary == ""  # not its base class's


def test_signature_resolves_text_and_leaves_what_it_cannot(parts):
    width = parts.find("generator", "unet").signature.parameters["width"]
    assert width.annotation is int

    @parts.register("generator", "typed")
    def typed(tensor: Tensor = None, depth: int = 1):  # noqa: F821 - imported for type checkers alone
        pass

    assert parts.find("generator", "typed").signature.parameters["tensor"].annotation == "Tensor"


def test_builtin_modules_load_when_their_kind_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "lazy_parts_for_test.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry({"sampler": ("lazy_parts_for_test",), "encoder": ("no_such_module_for_test",)})
    assert "lazy_parts_for_test" not in sys.modules
    assert registry.list_parts("samplers") == []
    assert sys.modules.pop("lazy_parts_for_test").LOADED
    for _ in range(2):  # a part's module that fails fails every time, not only the first
        with pytest.raises(ModuleNotFoundError):
            registry.list_parts("encoders")


def test_importing_the_registry_needs_the_standard_library_alone():
    code = (
        "import sys, qsattn_plugin.registry as r; heavy = {'torch', 'pydantic', 'yaml', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_need_no_torch_by_themselves():
    code = "import sys, qsattn_plugin.registry.recipe.json_schema as j, qsattn_plugin.registry.recipe as r; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_builtin_kind_is_a_kind():
    from qsattn_plugin.registry import BUILTIN

    assert set(BUILTIN) == set(KINDS)


class _Base:
    """A base.

    Args:
        width: channels
        depth (int, optional): steps down,
            then up: and no new item.

    Raises:
        ValueError: not an argument.
    """

    def __init__(self, width, depth, bias):
        """Initialise.

        Args:
            bias: documented here.
        """


class _Child(_Base):
    """A child.

    Args:
        width: its own channels.
        *args: more.
    """


_DEPTH = "steps down, then up: and no new item."


@pytest.mark.parametrize(
    ("target", "docs"),
    [
        (_Base, {"bias": "documented here.", "width": "channels", "depth": _DEPTH}),
        (_Child, {"bias": "documented here.", "width": "its own channels.", "depth": _DEPTH, "args": "more."}),
        (_Base.__init__, {"bias": "documented here."}),
        (len, {}),
    ],
)
def test_argument_docs(target, docs):
    assert argument_docs(target) == docs


@pytest.mark.parametrize(
    ("kind", "name", "argument"),
    [
        ("objective", "hdce", "weighting"),
        ("objective", "lsesim", "similarity"),
        ("objective", "lsesim", "distance"),
        ("objective", "monce", "cost"),
        ("objective", "patchnce", "negatives"),
        ("sampler", "qsattn_global", "routing"),
        ("generator", "resnet_6blocks", "norm"),
        ("generator", "resnet_6blocks", "init"),
    ],
)
def test_a_misspelt_choice_is_no_other_choice(kind, name, argument):
    with pytest.raises(ValueError, match=f"^{argument}: must be one of .*, got 'densty'"):
        create(kind, name, **{argument: "densty"})

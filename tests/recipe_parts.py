"""Small parts for the tests of recipes, in a registry of their own; a pytest plugin."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Literal

import pytest

from qsattn_plugin import registry
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import Recipe, load_recipe

#: The smallest recipe.
GOOD = "data: {root: x}\ntrain: {steps: 100}\n"


class Method:
    """Trains.

    Args:
        networks: given by the trainer.
        gan: the adversarial loss.
        weight: of it.
    """

    defaults = {"sampler": {"type": "points", "queries": 64}, "objective": {"weight": 2.0}, "train": {"lr": 1e-3}}  # noqa: RUF012

    def __init__(self, networks, *, gan: Literal["lsgan", "hinge"] = "lsgan", weight: float = 1.0):
        self.networks, self.gan, self.weight = networks, gan, weight


class OtherMethod:
    """Trains in another way."""

    defaults = {"sampler": "attention", "augmentations": ["flip"]}  # noqa: RUF012

    def __init__(self, *, cycle: float = 10.0):
        self.cycle = cycle


class Generator:
    """A generator.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 64, in_channels: int = 3, taps: tuple[int | str, ...] = ()):
        if width < 1:
            raise ValueError(f"width: must be at least 1, got {width}")
        if width > 1000:
            raise ValueError("too wide for this machine")
        self.width, self.in_channels, self.taps = width, in_channels, taps


class Folders:
    """Pictures."""

    def __init__(self, root: Path, note: str = "", channels: int = 3):
        if root.name == "empty":
            raise UserError(f"root: there are no images below {root}")
        self.root, self.channels = root, channels


def points(queries: int = 256, grid: bool = False, scale: float = 1.0):
    """Points."""
    return ("points", queries)


def attention(queries: int = 256, rows: Literal["low", "high"] = "low", options: dict[str, float] | None = None):
    """Attention."""
    return ("attention", queries)


def loose(**options):
    """Takes anything."""
    return options


def flip(p: float = 0.5):
    """Flips."""
    return ("flip", p)


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """A registry of small parts instead of the real ones, and an empty current directory."""
    monkeypatch.setattr(registry.REGISTRY, "_parts", {})
    monkeypatch.setattr(registry.REGISTRY, "_builtin", {})
    monkeypatch.setattr(registry.REGISTRY, "_loaded", set())
    for kind, name, target in [
        ("method", "qsattn", Method),
        ("method", "cycle", OtherMethod),
        ("generator", "resnet_9blocks", Generator),
        ("generator", "loose", loose),
        ("discriminator", "patchgan", loose),
        ("encoder", "generator", loose),
        ("sampler", "random", points),
        ("sampler", "points", points),
        ("sampler", "attention", attention),
        ("augmentation", "flip", flip),
        ("augmentation", "loose", loose),
        ("dataset", "folders", Folders),
        ("dataset", "toy", loose),
    ]:
        registry.register(kind, name)(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(parts):
    """Load ``my.yaml`` from its text, with overrides, beside other files given as ``name=text``."""

    def load_text(text: str | bytes, *overrides: str, **others: str) -> Recipe:
        for name, content in {**others, "my": text}.items():
            Path(f"{name}.yaml").write_bytes(content if isinstance(content, bytes) else dedent(content).encode())
        return load_recipe("my.yaml", overrides)

    return load_text

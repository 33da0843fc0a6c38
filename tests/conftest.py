"""What several tests share: real pictures where they are at hand, and a run small enough to train in a second."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

# Tests are many and small: threads of their own would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Sets of real pictures, for development; not part of the package.
REAL = Path(__file__).parents[2] / "shared" / "data" / "horse2zebra"

#: Overrides that make the recipe `toy` train a few steps in about a second.
TINY = (
    "data.size=32",
    "data.crop=32",
    "data.train=4",
    "data.test=2",
    "generator.width=4",
    "discriminator={type: patchgan, width: 4, layers: 1}",
    "sampler.queries=16",
    "train.steps=4",
    "train.decay_from=0.5",
    "train.batch_size=2",
    "train.log_every=1",
    "train.device=cpu",
    "train.precision=fp32",
    "evaluate={every: 2, grid: 2}",
    "checkpoint={every: 2, keep: 2}",
)


def pytest_make_parametrize_id(config, val, argname):
    """Refuse an archive's bytes as a test's name: they may hold the time they were made at, and workers disagree."""
    if isinstance(val, bytes) and val.startswith((b"PK", b"\x1f\x8b")):
        raise pytest.UsageError(f"{argname}: give this archive a name, pytest.param(..., id=...)")


@pytest.fixture
def real_pictures() -> Path:
    """The folder of the real horse2zebra set; skips where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"the real pictures are not at {REAL.name} beside the checkout")
    return REAL


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parts_go_again(monkeypatch) -> None:
    """What a test registers goes again. Built-in parts stay: their modules are not imported a second time."""
    from qsattn_plugin.registry import REGISTRY

    REGISTRY.list_parts()  # all kinds are known, and then imported: what is left is no mere index
    REGISTRY.import_builtin()
    monkeypatch.setattr(REGISTRY, "_parts", dict(REGISTRY._parts))


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """A hub that cannot be reached, an empty cache, and no patience for retries."""
    from huggingface_hub import constants

    def asleep(_seconds):
        raise AssertionError("waits before it tries again")

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", asleep)
    yield tmp_path / "hub"
    assert constants.HF_HUB_OFFLINE is False, "the hub's client is left as it was"

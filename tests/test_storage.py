"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from qsattn_plugin import storage
from qsattn_plugin.data.images import write_image
from qsattn_plugin.errors import UserError
from qsattn_plugin.storage.checkpoints import Checkpoints

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b/c": torch.tensor([1, 2])}


def test_round_trip_and_equal_bytes(tmp_path):
    document = {"z": 1, "a": [1.5, None, "x"], "m": {"k": True}}
    for name in ("one", "two"):
        storage.save_tensors(tmp_path / name, TENSORS, document)
    tensors, read = storage.load_tensors(tmp_path / "one")
    assert read == document
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert storage.load_tensors(tmp_path / "one", "b/")[0].keys() == {"c"}
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_that_share_memory_are_saved_as_two(tmp_path):
    base = torch.arange(4.0)
    storage.save_tensors(tmp_path / "f", {"a": base, "b": base[:2], "c": base}, {})
    read, _ = storage.load_tensors(tmp_path / "f")
    assert torch.equal(read["b"], base[:2])
    assert torch.equal(read["a"], read["c"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "weights.safetensors is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a Git LFS pointer, .*`git lfs pull`",
        ),
        (b"\n <!DOCTYPE html><html>404</html>", "is a web page, not a file of weights"),
        (b"\x80\x04 not a safetensors file at all", "damaged or not a safetensors file"),
        (None, "there is no file"),
    ],
)
def test_what_is_no_weights_file_is_said_so(tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        storage.load_tensors(path)


def test_someone_elses_safetensors_file_is_said_so(tmp_path):
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(storage.DamagedFile, match="not one that this package wrote"):
        storage.read_document(tmp_path / "other.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "step.safetensors"
    storage.save_tensors(path, TENSORS, {"n": 1})

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", no_space)
    with pytest.raises(storage.WriteFailed, match=r"No space left on device; the file that was there .* is untouched"):
        storage.save_tensors(path, TENSORS, {"n": 2})
    assert storage.read_document(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["step.safetensors"]


def test_a_disk_that_fills_up_while_writing_leaves_the_old_checkpoint(tmp_path):
    """A real limit of the operating system, met in the middle of the file, in a process of its own."""
    program = """
import resource, signal, sys, torch
from pathlib import Path
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.data.images import write_image
from qsattn_plugin.errors import UserError
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
checkpoints.save(1, {"w": torch.zeros(1000)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"w": torch.zeros(100_000)}, {})
except UserError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "refused: could not write" in done.stdout
    assert "File too large" in done.stdout
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    assert storage.load_tensors(checkpoints.path(1))[0]["w"].shape == (1000,)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.safetensors"]


def test_checkpoints_keep_the_newest_and_pass_over_damaged_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() == (None, [])
    parts = {key: {"type": "x"} for key in ("generator", "discriminator", "encoder")}
    recipe = {"method": "x", "data": {"crop": 4}, "train": {"steps": 1}, **parts}
    for step in (5, 10, 15):
        checkpoints.save(step, {"w": torch.tensor([float(step)])}, {"scaler": {}, "recipe": recipe})
    assert checkpoints.steps() == [10, 15]
    newest = checkpoints.path(15)
    newest.write_bytes(newest.read_bytes()[:-3])
    path, damaged = checkpoints.newest()
    assert path == checkpoints.path(10)
    assert len(damaged) == 1
    assert "step-000000015.safetensors is damaged" in damaged[0]
    checkpoints.path(10).write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        checkpoints.newest()


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / ".step-000000001.safetensors.abc.part").write_bytes(b"half")
    (tmp_path / ".tmpAbC123").write_bytes(b"half")  # safetensors' own
    checkpoints.save(1, TENSORS, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.safetensors"]


@pytest.mark.parametrize("letter", ["n", "é", "象"])
def test_names_may_be_as_long_as_the_file_system_takes(tmp_path, letter):
    for ending, write in (
        (".txt", lambda p: storage.write_text(p, "x")),
        (".png", lambda p: write_image(Image.new("RGB", (4, 4)), p)),
    ):
        name = letter * ((255 - len(ending)) // len(letter.encode())) + ending
        write(tmp_path / name)
        assert (tmp_path / name).stat().st_size


def test_files_are_for_whom_the_umask_lets_read_them(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "shared.txt", "of a team")
    finally:
        os.umask(before)
    assert (tmp_path / "shared.txt").stat().st_mode & 0o777 == 0o640

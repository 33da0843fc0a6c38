"""Training, translation and scores on a device that is not the CPU: CUDA where there is one, else a pretended one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("part", ["test_a_step", "not test_a_step"])  # 214 s in one, on a slow core
def test_everything_works_on_an_accelerator(tmp_path, part):
    """In a process of its own, which the pretended device never leaves; CUDA would stay in this one's memory."""
    if torch.__version__ < (2, 5):
        pytest.skip("PyTorch 2.4, the oldest, takes no backend written in Python")
    cases = Path(__file__).with_name("accelerator_cases.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", tmp_path / "t"]
    result = subprocess.run(
        [*map(str, command), str(cases), "-k", part], capture_output=True, text=True, timeout=280, cwd=cases.parents[1]
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout

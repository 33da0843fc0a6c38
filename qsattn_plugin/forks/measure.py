"""What a call costs, and contexts that leave no trace in a fork's training."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["cost", "evaluating", "random_state"]


def cost(run: Callable[[list[Tensor]], list[Tensor]], features: list[Tensor]) -> tuple[float, float | None]:
    """Return milliseconds and peak megabytes of a call and its gradient to the features.

    The megabytes are None on a device whose memory cannot be asked for.
    """

    def step() -> None:
        with torch.enable_grad():
            leaves = [f.detach().clone().requires_grad_() for f in features]
            torch.autograd.grad(sum((p * p[:1]).sum() for p in run(leaves)), leaves, allow_unused=True)

    device = features[0].device
    cuda = device.type == "cuda"
    memory = None
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        memory = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    elif device.type == "cpu":
        memory = _profiled(step)
    if cuda:  # earlier work is not part of the call that is timed
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - begin), memory


def _profiled(step: Callable[[], None]) -> float:
    """Return the peak memory of the CPU allocator during a step, in megabytes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints the start and end of the profiler
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 1e6


@contextmanager
def random_state(device: torch.device) -> Iterator[None]:
    """Restore every random generator that a fork may draw from: Python's, numpy's, those of the CPU and a device."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(state)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have a module, whose parts may be in different modes, in evaluation mode for a while."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode

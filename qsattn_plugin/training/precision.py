"""The number format of a training: which one the device computes in hardware, and what another one would cost."""

from __future__ import annotations

import time
import warnings

import torch
import torch.nn.functional as F

#: Name in recipes -> the format that autocast computes in; None is none.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: CUDA devices of this compute capability or above compute fp16 faster than fp32.
_FP16_FROM = (7, 0)


class PrecisionWarning(UserWarning):
    """A training computes in a format that its device has no instructions for."""


def choose_precision(asked: str, device: torch.device, begun: str | None = None) -> str:
    """Return the format to train in: "fp32", "bf16" or "fp16". Warn if fp32 would be faster.

    Args:
        asked: ``train.precision`` of the recipe; "auto" is the format that the device computes in hardware.
        device: the training device.
        begun: the format that the training began in, which "auto" keeps.
    """
    own = hardware_precision(device)
    chosen = asked if asked != "auto" else begun or own
    if device.type == "cpu" and chosen not in ("fp32", own) and (ratio := time_ratio(chosen)) > 1:
        began = "" if asked != "auto" else ", as this training began in it"
        warnings.warn(
            f"train.precision: {chosen}{began}: this CPU has no instructions for it, a convolution took {ratio:.0f} "
            "times as long as in fp32; auto is what fits the machine",
            PrecisionWarning,
            stacklevel=2,
        )
    return chosen


def hardware_precision(device: torch.device) -> str:
    """Return "bf16" or "fp16" if the device computes that in hardware, the first one that it has, else "fp32".

    On devices other than CPUs and CUDA, where nothing was measured, it is "fp32".
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16"
            return "fp16" if torch.cuda.get_device_capability() >= _FP16_FROM else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if "avx512_bf16" in known:
        return known["avx512_bf16"] or known.get("amx_bf16", False)
    return time_ratio("bf16") < 1  # an older PyTorch, or another architecture


def time_ratio(precision: str) -> float:
    """Return how many times as long as in fp32 a convolution and its gradient take on the CPU, tried out."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        layer = torch.nn.Conv2d(32, 32, 3)
        images = torch.ones(1, 32, 32, 32)

        def seconds(name: str) -> float:
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=PRECISIONS[name], enabled=name != "fp32"):
                out = F.relu(layer(images))
            torch.autograd.grad(out.float().sum(), [*layer.parameters()])
            return time.perf_counter() - began

        for name in ("fp32", precision):
            seconds(name)  # allocations, and the choice of a kernel
        fp32, other = (min(seconds(name) for _ in range(3)) for name in ("fp32", precision))
    return other / fp32

"""The environment of a training, for its log: versions, device, threads; nothing that identifies a user or a host."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

import qsattn_plugin

_PACKAGES = ("torchvision", "timm", "kornia", "safetensors", "pillow")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return versions, processor, device and threads as text, by display name."""
    found = {"qsattn-plugin": qsattn_plugin.__version__, "Python": platform.python_version()}
    found["PyTorch"] = torch.__version__
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processor"] = _processor()
    found["cores"] = str(os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    found["device"] = str(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["CUDA"] = str(torch.version.cuda or torch.version.hip)
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return {name: value for name, value in found.items() if value}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "")

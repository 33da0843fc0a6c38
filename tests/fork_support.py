"""What the tests of forks share: feature maps, and classes that a test's swap does not outlive."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import fork_clients as clients

N = 24
SIZES = clients.Model.sizes


@pytest.fixture(autouse=True)
def fresh_classes():
    """Give the clients' classes back their own forward: a swap wraps it, and that of a class holds for the process."""
    kinds = [v for v in vars(clients).values() if isinstance(v, type) and issubclass(v, nn.Module)]
    before = [vars(kind).get("forward") for kind in kinds]
    yield
    for kind, forward in zip(kinds, before, strict=True):
        if forward is not None:
            kind.forward = forward
        elif "forward" in vars(kind):
            del kind.forward
        if "_qsattn_instead" in vars(kind):
            del kind._qsattn_instead


def features(batch: int, seed: int = 0, grad: bool = False, sizes=SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *size, generator=generator).requires_grad_(grad) for size in sizes]


def is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.dtype == torch.long

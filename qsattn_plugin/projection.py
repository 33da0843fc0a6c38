"""The heads that project routed features for the contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import at_least


class ProjectionHeads(nn.Module):
    """One two-layer MLP per tap, then normalisation to unit length.

    Names and shapes are those of CUT's ``PatchSampleF`` with ``mlp_sample``. The heads are built from the channels of
    the taps, not in a first forward pass, so that optimizers, checkpoints and distributed wrappers see all parameters.

    Args:
        channels: channels at each tap.
        width: width of both layers of each MLP.
        init_gain: scale of the Xavier initialisation; biases are 0.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, init_gain: float = 0.02):
        super().__init__()
        at_least(1, width=width)
        at_least(0, init_gain=init_gain)
        self.count, self.width = len(channels), width
        for index, c in enumerate(channels):
            first, second = nn.Linear(c, width), nn.Linear(width, width)
            for layer in (first, second):
                nn.init.xavier_normal_(layer.weight, gain=init_gain)
                nn.init.zeros_(layer.bias)
            self.add_module(f"mlp_{index}", nn.Sequential(first, nn.ReLU(), second))

    def forward(self, routed: Sequence[Tensor]) -> list[Tensor]:
        """Return projections (B, N, width), unit vectors in float32 at least, of features (B, N, C), one tensor a tap.

        Raises:
            ValueError: the number of tensors is not the number of heads.
        """
        if len(routed) != self.count:
            raise ValueError(f"routed: expected {self.count} tensors, one per head, got {len(routed)}")
        return [self.project(index, features) for index, features in enumerate(routed)]

    def project(self, index: int, features: Tensor) -> Tensor:
        """Return the projections of features (B, N, C) by the head of one tap."""
        out = getattr(self, f"mlp_{index}")(features)
        with no_autocast(out.device.type):
            # Against division by zero, as in CUT.
            out = at_least_float32(out)
            return out / (out.norm(dim=-1, keepdim=True) + 1e-7)


__all__ = ["ProjectionHeads"]

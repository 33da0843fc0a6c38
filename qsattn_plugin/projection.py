"""The small networks that project routed features to where the contrastive loss compares them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from qsattn_plugin.devices import no_autocast


class ProjectionHeads(nn.Module):
    """One two-layer MLP a tap, then unit length (CUT's ``PatchSampleF`` with ``mlp_sample``, by the same names).

    Built from the channels of the taps, not from a first forward pass, so that optimizers, checkpoints and
    distributed wrappers see every parameter from the start.

    Args:
        channels: channels at each tap.
        width: features of both layers of each MLP.
        init_gain: scale of the Xavier draw; biases are 0.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, init_gain: float = 0.02):
        super().__init__()
        if width < 1:
            raise ValueError(f"width: must be at least 1, got {width}")
        if init_gain < 0:
            raise ValueError(f"init_gain: must be at least 0, got {init_gain}")
        self.count = len(channels)
        for index, c in enumerate(channels):
            mlp = nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width))
            for layer in (mlp[0], mlp[2]):
                nn.init.xavier_normal_(layer.weight, gain=init_gain)
                nn.init.zeros_(layer.bias)
            self.add_module(f"mlp_{index}", mlp)

    def forward(self, routed: Sequence[Tensor]) -> list[Tensor]:
        """Project features (B, N, C), one tensor a tap, to unit vectors (B, N, width) in float32.

        Raises:
            ValueError: not as many tensors as there are heads.
        """
        if len(routed) != self.count:
            raise ValueError(f"{self.count} heads were built, but {len(routed)} feature maps came")
        projected = []
        for index, features in enumerate(routed):
            out = getattr(self, f"mlp_{index}")(features)
            with no_autocast(out.device.type):
                # The same guard against a zero vector as CUT's: its length is increased by 1e-7.
                out = out.float()
                projected.append(out / (out.norm(dim=-1, keepdim=True) + 1e-7))
        return projected


__all__ = ["ProjectionHeads"]

"""A generator and a sampler for QS-Attn recipes, registered when this module is imported."""

import torch
from torch import nn

from qsattn_plugin.attention.routes import PointRoute
from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import TappedGenerator
from qsattn_plugin.samplers.points import Sampler


@register("generator", "striped", tags=("small",))
class Striped(TappedGenerator):
    """A generator of three convolutions that are wide and flat.

    Args:
        width: channels between them.
        in_channels: channels of the images that come in.
        out_channels: channels of the images that go out.
    """

    default_taps = ("image", "first")

    def __init__(self, width: int = 8, in_channels: int = 3, out_channels: int = 3):
        super().__init__()
        model = [
            nn.Identity(),
            nn.Conv2d(in_channels, width, (1, 5), padding=(0, 2)),
            nn.ReLU(),
            nn.Conv2d(width, width, (1, 5), padding=(0, 2)),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, (1, 5), padding=(0, 2)),
            nn.Tanh(),
        ]
        self.finish(model, {0: "image", 2: "first"}, in_channels, "kaiming", 1.0)


@register("sampler", "diagonal")
class Diagonal(Sampler):
    """Looks along the diagonal of the map.

    Args:
        queries: N, how many positions of each map.
    """

    def choose_one(self, features, generator, observe):
        """Choose evenly spaced positions between the first corner and the last."""
        batch, _, height, width = features.shape
        steps = torch.linspace(0, 1, min(self.queries, height, width), device=features.device)
        rows, columns = (steps * (height - 1)).round().long(), (steps * (width - 1)).round().long()
        return PointRoute((rows * width + columns).expand(batch, -1), (height, width))

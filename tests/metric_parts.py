"""What the tests of scores share: random pictures in folders, small extractors, Inception with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.pixels import as_pil


def noise(count: int, seed: int, height: int = 32, width: int = 32, shade: float = 128.0) -> list[Tensor]:
    """Smooth random pictures, uint8 (3, height, width)."""
    draws = torch.Generator().manual_seed(seed)
    coarse = shade + 60 * torch.randn(count, 3, 4, 4, generator=draws)
    images = F.interpolate(coarse, (height, width), mode="bicubic")
    return list((images + 10 * torch.randn(images.shape, generator=draws)).clamp(0, 255).to(torch.uint8))


def folder(place: Path, pictures: list[Tensor], ending: str = "png", **names: list[str]) -> Path:
    """Write pictures, named 00, 01, ... or by ``names``."""
    place.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names.get("names", [f"{i:02}" for i in range(99)]), pictures, strict=False):
        as_pil(picture).save(place / f"{name}.{ending}")
    return place


def greys(place: Path, maps: dict[str, Tensor]) -> Path:
    """Write numbers (H, W) as files of one channel."""
    place.mkdir(parents=True, exist_ok=True)
    for name, numbers in maps.items():
        Image.fromarray(numbers.to(torch.uint8).numpy()).save(place / f"{name}.png")
    return place


class Small(nn.Module):
    """A network of two widths, as it is drawn."""

    resize = "8 x 8 means"

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 40, 3)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.first(F.adaptive_avg_pool2d(images.float() / 127.5 - 1, 8)).relu()
        return {"6": x.mean((2, 3)), "40": self.second(x).mean((2, 3))}


def small(weights: str | None, device: torch.device) -> Small:
    """Make the extractor ``tests.metric_parts:small``."""
    assert weights is None
    return Small().to(device)


def no_floats(weights: str | None, device: torch.device):
    return lambda images: {"3": images.sum((2, 3))}


def too_many(weights: str | None, device: torch.device):
    return lambda images: {"3": torch.zeros(len(images) + 1, 3)}


def not_numbers(weights: str | None, device: torch.device):
    return lambda images: {"3": torch.full((len(images), 3), torch.nan)}


def nothing(weights: str | None, device: torch.device) -> None:
    return None


def broken(weights: str | None, device: torch.device) -> None:
    raise RuntimeError("of two\nlines")


def random_inception() -> nn.Module:
    """torch-fidelity's Inception with weights as they are drawn, and batch norms that do something."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Drawn(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state, strict=True):  # its constructor wants weights; these stay
            return None

    original, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *args, **more: {}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Drawn("inception-v3-compat", ["64", "768"])
            for part in network.modules():
                if isinstance(part, nn.Conv2d):  # its own draws let the signal die on the way
                    nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_(0, 0.1)
                    part.running_var.uniform_(0.5, 2)
                    part.weight.uniform_(0.5, 2)
                    part.bias.normal_(0, 0.1)
    finally:
        module.load_state_dict_from_url = original
    return network

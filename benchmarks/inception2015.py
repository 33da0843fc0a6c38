"""The 2015 Inception of FID as far as its partial weights go: an extractor for `qsattn evaluate`, for development.

    qsattn evaluate FOLDER --real DIR --metrics fid,kid \\
        --extractor benchmarks.inception2015:features --extractor-weights inception2015_partial_fp16.safetensors

The weights file has its batch norms folded into the convolutions and lacks two convolutions of the last blocks; so the
widths are 64, 192, 768 (after Mixed_6e) and 1280 (after Mixed_7a), and 2048 cannot be had. Figures on these features
compare with each other, not with published ones. Szegedy et al., "Rethinking the Inception Architecture for Computer
Vision", 2015, figures 5, 6 and 10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from qsattn_plugin.errors import UserError

#: What is done to a picture before it is looked at; `qsattn evaluate` prints it.
RESIZE = "299 x 299, bilinear between pixel centres (antialiased where smaller), [-1, 1]"


def features(weights: str | None, device: torch.device) -> Inception2015:
    """Return the extractor; what `qsattn evaluate --extractor` calls."""
    if weights is None:
        raise UserError("the partial Inception of 2015 needs its file of weights: name it with --extractor-weights")
    return Inception2015({name: tensor.to(device, torch.float32) for name, tensor in load_file(weights).items()})


class Inception2015:
    """Pictures, uint8 (B, 3, H, W), to ``{"64": (B, 64), "192": ..., "768": ..., "1280": ...}``, float32.

    Args:
        tensors: name -> weight (O, I, h, w) or bias (O,), named as in torchvision's ``inception_v3``.
    """

    resize = RESIZE

    def __init__(self, tensors: dict[str, Tensor]):
        # 1.5 times faster on CPUs than with a channel's positions side by side.
        layout = torch.channels_last
        self.tensors = {n: t.contiguous(memory_format=layout) if t.ndim == 4 else t for n, t in tensors.items()}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        images = images.to(self.tensors["Conv2d_1a_3x3.conv.weight"])
        images = F.interpolate(images, (299, 299), mode="bilinear", antialias=True) / 127.5 - 1
        return {name: maps.mean((2, 3)) for name, maps in self.maps(images).items()}

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature maps, by their channels, of images (B, 3, 299, 299) in [-1, 1]."""
        found = {}
        x = self.conv("Conv2d_1a_3x3", x, stride=2)
        x = self.conv("Conv2d_2a_3x3", x)
        x = F.max_pool2d(self.conv("Conv2d_2b_3x3", x, same=True), 3, 2)
        found["64"] = x
        x = self.conv("Conv2d_3b_1x1", x)
        x = F.max_pool2d(self.conv("Conv2d_4a_3x3", x), 3, 2)
        found["192"] = x
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.block_35(name, x)
        x = self.reduce_35(x)
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.block_17(name, x)
        found["768"] = x
        found["1280"] = self.reduce_17(x)
        return found

    def conv(self, name: str, x: Tensor, stride: int = 1, same: bool = False) -> Tensor:
        """A convolution and its ReLU; ``same`` pads so that the size stays."""
        weight = self.tensors[f"{name}.conv.weight"]
        padding = [side // 2 for side in weight.shape[2:]] if same else 0
        return F.relu(F.conv2d(x, weight, self.tensors[f"{name}.conv.bias"], stride, padding))

    def chain(self, x: Tensor, *names: str) -> Tensor:
        """Convolutions one after another, each of which keeps the size."""
        for name in names:
            x = self.conv(name, x, same=True)
        return x

    def pooled(self, name: str, x: Tensor) -> Tensor:
        """The branch with the average pool; the 2015 graph does not count the padding in its averages."""
        return self.conv(f"{name}.branch_pool", F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))

    def block_35(self, name: str, x: Tensor) -> Tensor:
        """Mixed_5b to 5d, at 35 x 35."""
        double = [f"{name}.branch3x3dbl_{i}" for i in (1, 2, 3)]
        return torch.cat(
            [
                self.conv(f"{name}.branch1x1", x),
                self.chain(x, f"{name}.branch5x5_1", f"{name}.branch5x5_2"),
                self.chain(x, *double),
                self.pooled(name, x),
            ],
            dim=1,
        )

    def block_17(self, name: str, x: Tensor) -> Tensor:
        """Mixed_6b to 6e, at 17 x 17."""
        return torch.cat(
            [
                self.conv(f"{name}.branch1x1", x),
                self.chain(x, *(f"{name}.branch7x7_{i}" for i in (1, 2, 3))),
                self.chain(x, *(f"{name}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
                self.pooled(name, x),
            ],
            dim=1,
        )

    def reduce_35(self, x: Tensor) -> Tensor:
        """Mixed_6a, from 35 x 35 to 17 x 17."""
        double = self.chain(x, "Mixed_6a.branch3x3dbl_1", "Mixed_6a.branch3x3dbl_2")
        return torch.cat(
            [
                self.conv("Mixed_6a.branch3x3", x, stride=2),
                self.conv("Mixed_6a.branch3x3dbl_3", double, stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            dim=1,
        )

    def reduce_17(self, x: Tensor) -> Tensor:
        """Mixed_7a, from 17 x 17 to 8 x 8."""
        seven = self.chain(x, *(f"Mixed_7a.branch7x7x3_{i}" for i in (1, 2, 3)))
        return torch.cat(
            [
                self.conv("Mixed_7a.branch3x3_2", self.conv("Mixed_7a.branch3x3_1", x), stride=2),
                self.conv("Mixed_7a.branch7x7x3_4", seven, stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            dim=1,
        )

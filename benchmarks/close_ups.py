"""Cut squares around the animals out of a folder of pictures, for a training that sees animals from near.

    python -m benchmarks.close_ups datasets/horse2zebra/trainA -o datasets/close-ups/trainA --margins 1.2 \\
        --classifier tf_efficientnet_lite1.safetensors
    python -m benchmarks.close_ups datasets/horse2zebra/trainB -o datasets/close-ups/trainB --margins 1.6 1.2 \\
        --classifier tf_efficientnet_lite1.safetensors

Squares are found as :mod:`benchmarks.animals` finds them; take another classifier than the one that is to judge. Of the
margins, the first counts that leaves something of the picture out; where none does, the last.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from benchmarks.animals import find_animals, pictures
from qsattn_plugin.data.images import find_images


def squares(images: Tensor, classifier: nn.Module, margins: list[float]) -> list[tuple[int, int, int]]:
    """Return (left, top, side) of a square around the clearest animal of each uint8 image (B, 3, H, W)."""
    found = find_animals(images, classifier, margins[0]).squares
    for margin in margins[1:]:
        whole = [i for i, (_, _, side) in enumerate(found) if side == min(images.shape[-2:])]
        for i, one in zip(whole, find_animals(images[whole], classifier, margin).squares if whole else (), strict=True):
            found[i] = one
    return found


def main() -> None:
    """Cut what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the squares, PNG files")
    parser.add_argument("--margins", type=float, nargs="+", default=[1.2], help="width of a square, by the animal's")
    parser.add_argument("--classifier", type=Path, required=True, help="ImageNet weights under timm's names")
    parser.add_argument("--classifier-model", default="tf_efficientnet_lite1")
    args = parser.parse_args()
    classifier = timm.create_model(args.classifier_model).eval().to(memory_format=torch.channels_last)
    classifier.load_state_dict(load_file(args.classifier))
    images = pictures(args.folder, None)
    args.out.mkdir(parents=True, exist_ok=True)
    for path, image, (x, y, side) in zip(
        find_images(args.folder), images, squares(images, classifier, args.margins), strict=True
    ):
        to_pil_image(image[:, y : y + side, x : x + side]).save(args.out / f"{path.stem}.png")


if __name__ == "__main__":
    main()

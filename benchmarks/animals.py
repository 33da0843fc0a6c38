"""How models of horses and zebras do on the animals and beside them, found by a classifier's activation maps.

    python -m benchmarks.animals horse2zebra runs/mine --root datasets/horse2zebra --split train --count 400 \\
        --classifier tf_efficientnet_lite2.safetensors --extractor-weights inception2015_partial_fp16.safetensors

FID over whole pictures pays for a savannah painted behind a horse. So animals are found without labels: the class
activation map (Zhou et al. 2016) of an ImageNet classifier for its hoofed mammals, above a quarter of its maximum.
For each model: KID on the Inception's 1280 features between square crops around the animals (``--margin``) of
translations and of real pictures, the share of those crops that the classifier takes for the target animal, and the
mean change of a pixel, of 1, outside and inside the map. Then FID-1280 and KID-1280 of whole pictures. Take a
classifier that no discriminator looked through.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.inception2015 import Inception2015
from qsattn_plugin import load
from qsattn_plugin.data.images import find_images
from qsattn_plugin.distances import frechet_distance, kernel_distances

#: ImageNet's sorrel, zebra, and other hoofed mammals that horses and half-made zebras are taken for.
TARGET = {"B": 340, "A": 339}
HOOFED = [339, 340, *range(345, 356)]
FEATURE = "1280"
MARGIN = 1.2


class Found(NamedTuple):
    """Where the animals are: masks (B, 1, H, W), and a square (left, top, side) around the clearest one of each."""

    masks: Tensor
    squares: list[tuple[int, int, int]]


def pictures(folder: Path, count: int | None) -> Tensor:
    """Return a folder's first pictures as uint8 (B, 3, 256, 256)."""
    files = find_images(folder)[:count]
    return torch.stack([pil_to_tensor(Image.open(path).convert("RGB").resize((256, 256))) for path in files])


@torch.inference_mode()
def find_animals(images: Tensor, classifier: nn.Module, margin: float = MARGIN, share: float = 0.25) -> Found:
    """Find the animals in uint8 images (B, 3, H, W); squares are ``margin`` times as wide as they are."""
    masks, squares = [], []
    for chunk in images.split(16):
        seen = F.interpolate(chunk / 127.5 - 1, (448, 448), mode="bilinear")
        maps = torch.einsum(
            "kc,bchw->bkhw", classifier.get_classifier().weight[HOOFED], classifier.forward_features(seen)
        )
        heat = F.interpolate(maps.amax(1, keepdim=True), images.shape[-2:], mode="bilinear")
        mask = (heat > share * heat.amax((2, 3), keepdim=True)).float()
        masks.append(mask)
        for one, warm in zip(mask, heat, strict=True):
            part = (warm == warm.max()).float()
            while True:  # grows from the clearest place to all that hangs together with it
                grown = F.max_pool2d(part, 9, 1, 4) * one
                if torch.equal(grown, part):
                    break
                part = grown
            _, ys, xs = part.nonzero(as_tuple=True)
            squares.append(square(xs, ys, *images.shape[-2:], margin))
    return Found(torch.cat(masks), squares)


def square(xs: Tensor, ys: Tensor, height: int, width: int, margin: float) -> tuple[int, int, int]:
    """Return (left, top, side) of the square around places, ``margin`` times as wide as they are, inside the image."""
    (left, right), (top, bottom) = ((int(v.min()), int(v.max()) + 1) for v in (xs, ys))
    side = min(round(margin * max(right - left, bottom - top)), height, width)
    left = min(max((left + right - side) // 2, 0), width - side)
    top = min(max((top + bottom - side) // 2, 0), height - side)
    return left, top, side


def crops(images: Tensor, squares: list[tuple[int, int, int]]) -> Tensor:
    """Return the squares of uint8 images, brought to 256 x 256."""
    cut = [
        F.interpolate(image[None, :, y : y + side, x : x + side].float(), (256, 256), mode="bilinear", antialias=True)
        for image, (x, y, side) in zip(images, squares, strict=True)
    ]
    return torch.cat(cut).round().to(torch.uint8)


@torch.inference_mode()
def taken_for(images: Tensor, classifier: nn.Module, target: int) -> float:
    """Return the share of uint8 images that the classifier takes for a class."""
    classes = [
        classifier(F.interpolate(c / 127.5 - 1, (260, 260), mode="bilinear", antialias=True)).argmax(1)
        for c in images.split(16)
    ]
    return float((torch.cat(classes) == target).float().mean())


@torch.inference_mode()
def translate(model: str, images: Tensor) -> Tensor:
    """Return a model's translations of uint8 images, as uint8."""
    generator = load(model).eval()
    made = torch.cat([generator(chunk / 127.5 - 1) for chunk in images.split(8)])
    return ((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Judge:
    """A split's pictures, and the networks that score translations of them.

    Args:
        root: the data set's folder.
        split: train or test.
        classifier: ImageNet weights of ``classifier_model`` under timm's names.
        extractor: weights of the Inception, see :mod:`benchmarks.inception2015`.
        direction: AtoB or BtoA.
        count: pictures of each domain; None takes all.
        margin: see :func:`find_animals`.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        classifier: Path,
        extractor: Path,
        direction: str = "AtoB",
        count: int | None = None,
        classifier_model: str = "tf_efficientnet_lite2",
        margin: float = MARGIN,
    ):
        self.classifier = timm.create_model(classifier_model).eval()
        self.classifier.load_state_dict(load_file(classifier))
        self.classifier.to(memory_format=torch.channels_last)  # 1.7 times faster on CPUs
        self.inception = Inception2015({name: tensor.float() for name, tensor in load_file(extractor).items()})
        self.target = TARGET[direction[-1]]
        self.source, self.real = (pictures(root / f"{split}{domain}", count) for domain in direction.split("to"))
        self.there, wanted = (find_animals(images, self.classifier, margin) for images in (self.source, self.real))
        self.real_crops, self.real_whole = self.features(crops(self.real, wanted.squares)), self.features(self.real)

    def features(self, images: Tensor) -> Tensor:
        """Return the Inception's 1280 features of uint8 images."""
        return torch.cat([self.inception(chunk)[FEATURE] for chunk in images.split(16)])

    def score(self, model: str) -> dict[str, float]:
        """Return what the module's text names of a model: KIDs times 100, changes of 1."""
        made = self.source if model == "none" else translate(model, self.source)
        change = (made.float() - self.source.float()).abs().mean(1, keepdim=True) / 255
        inside, size = self.there.masks, min(len(self.source), len(self.real))
        on_animals, whole = crops(made, self.there.squares), self.features(made)
        return {
            "kid_animals": 100 * float(kernel_distances(self.features(on_animals), self.real_crops, 1, size)[0]),
            "taken": taken_for(on_animals, self.classifier, self.target),
            "outside": float((change * (1 - inside)).sum() / (1 - inside).sum()),
            "inside": float((change * inside).sum() / inside.sum()),
            "fid": frechet_distance(whole, self.real_whole),
            "kid": 100 * float(kernel_distances(whole, self.real_whole, 1, size)[0]),
        }


def main() -> None:
    """Score what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="runs, weights files, published names; or `none`, the source itself")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--direction", choices=("AtoB", "BtoA"), default="AtoB")
    parser.add_argument("--count", type=int, help="pictures of each domain; all without it")
    parser.add_argument("--classifier", type=Path, required=True, help="ImageNet weights under timm's names")
    parser.add_argument("--classifier-model", default="tf_efficientnet_lite2")
    parser.add_argument("--extractor-weights", type=Path, required=True)
    parser.add_argument("--margin", type=float, default=MARGIN, help="width of a square, by the animal's")
    parser.add_argument("--json", type=Path, help="append a line a model")
    args = parser.parse_args()
    networks = (args.classifier, args.extractor_weights)
    judge = Judge(args.root, args.split, *networks, args.direction, args.count, args.classifier_model, args.margin)
    print(f"{args.split}: {len(judge.source)} and {len(judge.real)} pictures, classifier {args.classifier_model}")
    print("animals: KID x 100, share taken for the target; change outside, inside; whole: FID, KID x 100")
    for model in args.models:
        row = {"model": model, **judge.score(model)}
        print(
            f"{row['kid_animals']:6.2f} {row['taken']:5.2f}   {row['outside']:.4f} {row['inside']:.4f}   "
            f"{row['fid']:6.2f} {row['kid']:5.2f}   {model}",
            flush=True,
        )
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

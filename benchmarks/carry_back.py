"""Ways to carry a change from the size a model knows back to a larger picture, measured where the truth is known.

    python -m benchmarks.carry_back toy --count 16 [--sheet carry-back.png]

The toy is drawn by code at any size: the same horses and zebras at 512 pixels, translated there by a model of 64 pixels
("full"), or at 64 with the change carried back in several ways. For each way: the toy's own scores, and the halo, the
mean change (of [-1, 1]) within 8 pixels outside the silhouettes. Then the same for the true change at 64 pixels, as if
the model made no mistake: the halo, and the mean difference from the drawn zebra inside, and within 4 pixels of the
outline. Last the CPU time for 512 x 512 pixels, in one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import kornia
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from qsattn_plugin import load
from qsattn_plugin.data.pixels import from_tensor, to_channels, to_float
from qsattn_plugin.data.toy import ToyHorses
from qsattn_plugin.data.toy.score import background_change, coat_distance
from qsattn_plugin.translation.grid import labelled
from qsattn_plugin.translation.sizes import carry_back, resize_picture
from qsattn_plugin.translation.translator import Translator

#: Brings a picture's change to full size: of the picture, the same small, and its translation there, (1, C, H, W) each.
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def tensor(picture: Image.Image) -> Tensor:
    """Return a picture as (1, 3, H, W) in [-1, 1]."""
    return to_float(to_channels(picture, 3))[None]


def bicubic(full: Tensor, seen: Tensor, made: Tensor) -> Tensor:
    """The enlarged change by itself."""
    return F.interpolate(made - seen, full.shape[-2:], mode="bicubic", antialias=True)


def guided(full: Tensor, seen: Tensor, made: Tensor) -> Tensor:
    """The guided filter of the enlarged change, over two pixels of the working size."""
    scale = full.shape[-1] // seen.shape[-1]
    return kornia.filters.guided_blur(full, bicubic(full, seen, made), 2 * scale + 1, 1e-3)


def bilateral(full: Tensor, seen: Tensor, made: Tensor) -> Tensor:
    """The joint bilateral filter of the enlarged change."""
    scale = full.shape[-1] // seen.shape[-1]
    change = bicubic(full, seen, made)
    return kornia.filters.joint_bilateral_blur(change, full, 2 * scale + 1, 0.1, (scale / 2, scale / 2))


def chosen(full: Tensor, seen: Tensor, made: Tensor) -> Tensor:
    """The package's own way, in 8 bits."""
    return tensor(carry_back(*(from_tensor(x[0]) for x in (full, seen, made)))) - full


WAYS: dict[str, Way] = {
    "bicubic": bicubic,
    "guided filter": guided,
    "joint bilateral filter": bilateral,
    "local slope (chosen)": chosen,
}


def unclamped(model: Translator, seen: Tensor) -> Tensor:
    """Return a residual generator's translation before it is bounded to [-1, 1]."""
    generator = model.generator
    (*_, (_, out)) = generator._layers(seen, ())
    return seen + out


class Judge:
    """Scores pictures (N, C, S, S) against the drawn ones."""

    def __init__(self, size: int, count: int):
        toy = ToyHorses(size, test=count)
        horses, zebras = (toy.split(name) for name in ("testA", "testB"))
        self.horses, self.zebras = (to_float(torch.stack([s[i] for i in range(count)])) for s in (horses, zebras))
        self.silhouettes = toy.silhouettes("testA")
        inside = (self.silhouettes > 1 / 255).float()[:, None]
        self.inside = inside[:, 0] > 0
        self.halo = ((F.max_pool2d(inside, 17, 1, 8) > 0) & (inside == 0))[:, 0]
        self.outline = (F.max_pool2d(inside, 9, 1, 4) != -F.max_pool2d(-inside, 9, 1, 4))[:, 0]

    def scores(self, found: Tensor) -> list[float]:
        """Return coat distance, background change, halo, and the error inside and at the outline."""
        given = (found, self.horses)
        change, error = ((found - other).abs().mean(1) for other in (self.horses, self.zebras))
        return [
            coat_distance(*given, self.zebras, self.silhouettes),
            background_change(*given, self.silhouettes),
            float(change[self.halo].mean()),
            float(error[self.inside].mean()),
            float(error[self.outline].mean()),
        ]


@torch.inference_mode()
def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model of the toy: a run, a weights file or a published name")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--count", type=int, default=16, help="how many animals")
    parser.add_argument("--sheet", type=Path, help="write the first animal in all versions")
    parser.add_argument("--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="of the sheet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model)
    assert model.trained, "the model does not say at what size it was trained"
    judge = Judge(args.size, args.count)
    small = [
        torch.cat([tensor(resize_picture(from_tensor(image), model.trained)) for image in images])
        for images in (judge.horses, judge.zebras)
    ]
    made = torch.cat([tensor(p) for p in model.translate([from_tensor(x) for x in small[0]], at="full")])
    full = torch.cat([tensor(model.translate(from_tensor(image), at="full")) for image in judge.horses])

    def carried(way: Way, translation: Tensor) -> Tensor:
        pairs = zip(judge.horses.split(1), small[0].split(1), translation.split(1), strict=True)
        return torch.cat([(x + way(x, *low)).clamp(-1, 1) for x, *low in pairs])

    def line(name: str, figures: list[float]) -> None:
        cells = [name, *(f"{value:.4f}" for value in figures), *["-"] * (7 - len(figures))]
        print(f"| {' | '.join(cells)} |", flush=True)

    panels = [("horse", judge.horses), ("zebra, drawn", judge.zebras), ("full", full)]
    print("| way | coat distance | background | halo | truth: halo | inside | outline | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    line("full", judge.scores(full)[:3])
    for name, way in WAYS.items():
        found = carried(way, made)
        panels.append((name, found))
        clock = time.process_time()
        true = carried(way, small[1])
        seconds = (time.process_time() - clock) / args.count
        line(name, [*judge.scores(found)[:3], *judge.scores(true)[2:], seconds])
    if model.generator.residual:
        line("bicubic, not clamped before", judge.scores(carried(bicubic, unclamped(model, small[0])))[:3])
    if args.sheet:
        sheet = [(name, from_tensor(images[0])) for name, images in panels]
        labelled([(name, p.crop(args.crop) if args.crop else p) for name, p in sheet]).save(args.sheet)


if __name__ == "__main__":
    main()

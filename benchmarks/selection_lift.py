"""Do the selected queries lie on the animal? Measured on the toy set, whose silhouettes are known.

The lift is the share of queries on the animal over the share that chance gives: 1 is chance. For each tap, significance
and training stage; and a picture of the entropy maps by stage.

    python benchmarks/selection_lift.py runs/toy --steps 0 400 1200 --out docs

``--steps 0`` is the network as it is drawn; other steps are checkpoints of the run (train it with
``-s checkpoint.keep=100`` to have them).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from qsattn_plugin.attention import GlobalAttention, select_queries
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.evaluation.maps import entropy_map
from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session

SHARES = (0.05, 0.25)


def on_the_map(silhouettes: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Return how much of each position is the animal: (B, H, W) pixels to (B, h * w), maps centred on the image."""
    h, w = shape
    more = [side * stride - pixels for side, pixels in zip(shape, silhouettes.shape[-2:], strict=True)]
    top, left = more[0] // 2, more[1] // 2
    padded = F.pad(silhouettes[:, None], (left, more[1] - left, top, more[0] - top))
    return F.avg_pool2d(padded, stride).view(-1, h * w)


@torch.no_grad()
def measure(session: Session, images: Tensor, silhouettes: Tensor) -> dict[tuple[str, int, float], float]:
    """Return the lift by (significance, tap, share of positions that are queries)."""
    encoder, generator = session.method.encoder, session.method.generator
    lifts = {}
    for tap, stride, features in zip(encoder.taps, encoder.strides, encoder.features(generator, images), strict=True):
        animal = on_the_map(silhouettes, features.shape[-2:], stride)
        for part in list_parts("significance"):
            draws = torch.Generator().manual_seed(0)
            ranks = part.target(features, GlobalAttention(), generator=draws)
            for share in SHARES:
                count = max(1, round(share * ranks.shape[1]))
                chosen = select_queries(ranks, count)
                lifts[part.name, tap, share] = float(animal.gather(1, chosen).mean() / animal.mean())
    return lifts


def picture(sessions: dict[int, Session], images: Tensor) -> Image.Image:
    """Draw entropy maps by training stage (rows) for the two deepest taps of two test images (columns)."""
    rows = []
    for session in sessions.values():
        encoder, panels = session.method.encoder, []
        for image in images[:2]:
            with torch.no_grad():
                features = encoder.features(session.method.generator, image[None])
            for index in (-2, -1):
                count = round(0.25 * features[index][0, 0].numel())
                sampler = create("sampler", "qsattn_global", queries=count, taps="all")
                found = entropy_map(image, features[index], sampler, encoder.strides[index], torch.Generator())
                panels.append(found.draw())
        rows.append(panels)
    width = sum(p.width + 12 for p in rows[0])
    sheet = Image.new("RGB", (width, sum(r[0].height + 30 for r in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    y = 0
    for step, panels in zip(sessions, rows, strict=True):
        draw.text((4, y + 8), f"step {step}", fill="black", font_size=18)
        x = 0
        for number, panel in enumerate(panels):
            tap = next(iter(sessions.values())).method.encoder.taps[-2 + number % 2]
            draw.text(
                (x + 110, y + 8), f"tap {tap}: image, entropy (warm is small), queries", fill="black", font_size=15
            )
            sheet.paste(panel, (x, y + 30))
            x += panel.width + 12
        y += panels[0].height + 30
    return sheet


def main() -> None:
    """Measure the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, help="a folder for selection-lift.png")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    dataset = run.recipe.build("data")
    images = to_float(torch.stack(list(dataset.split("testA"))))
    silhouettes = dataset.silhouettes("testA")
    sessions = {}
    for step in arguments.steps:
        sessions[step] = Session(run.recipe)
        if step:
            sessions[step].restore(run.checkpoints.path(step))
    lifts = {step: measure(session, images, silhouettes) for step, session in sessions.items()}
    taps = next(iter(sessions.values())).method.encoder.taps
    print(f"{len(images)} test horses of {images.shape[-1]} pixels; the animal covers {silhouettes.mean():.1%}.\n")
    print("| step | significance | queries | " + " | ".join(f"tap {t}" for t in taps) + " |")
    print("| ---: | --- | ---: |" + " ---: |" * len(taps))
    for step, found in lifts.items():
        for share in SHARES:
            for name in dict.fromkeys(key[0] for key in found):
                cells = " | ".join(f"{found[name, tap, share]:.2f}" for tap in taps)
                print(f"| {step} | {name} | {share:.0%} | {cells} |")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        picture(sessions, images).save(arguments.out / "selection-lift.png")


if __name__ == "__main__":
    main()

"""What each discriminator costs a step, and what it brings over wall-clock time.

    python -m benchmarks.discriminators speed --weights tf_efficientnet_lite0.safetensors [--threads 1] [--rounds 5]
    python -m benchmarks.discriminators curve runs/patchgan runs/projected --root datasets/horse2zebra --count 200 \\
        --extractor-weights inception2015_partial_fp16.safetensors -o docs/images/discriminators.png

``speed`` times whole training steps of ``horse2zebra_mobile`` at 256 pixels, batch 1, with each discriminator in turn,
round after round in one process, and prints medians. ``curve`` scores every checkpoint of each run by FID-1280 of
translated *training* pictures, and draws it over the minutes that so many steps take, by a step of each run timed as
``speed`` does it: runs that shared a machine with other work cannot be compared by the clock that they saw.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from benchmarks.animals import pictures, translate
from qsattn_plugin.devices import pick_device
from qsattn_plugin.distances import frechet_distance
from qsattn_plugin.evaluation.features import load_extractor
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session

PATCHGAN = "{type: patchgan, layers: 4, width: 32, shrink: 2, norm: none, init: orthogonal, init_gain: 1.0}"
#: The file of weights goes where FILE stands.
PROJECTED = "{type: projected, model: tf_efficientnet_lite0, weights: FILE}"
#: Row -> settings.
DISCRIMINATORS = {
    "patchgan, the papers'": ("discriminator={type: patchgan, layers: 3}", "objective={gan: lsgan, r1: 0}"),
    "patchgan, half the side, R1": (f"discriminator={PATCHGAN}", "objective={gan: lsgan, r1: 0.3}"),
    "projected": (f"discriminator={PROJECTED}", "objective={gan: hinge, r1: 0}"),
    "ensemble of the last two": (
        f"discriminator={{type: ensemble, of: [{PROJECTED}, {PATCHGAN}], weights: [1, 0.5], r1: [0, 0.3]}}",
        "objective={gan: hinge}",
    ),
}
COLOURS = ("#c0392b", "#1f6feb", "#2e8b57", "#8e44ad")


def speed(weights: Path, threads: int, rounds: int, device: torch.device) -> None:
    """Print a markdown table of seconds a step."""
    torch.set_num_threads(threads)
    base = ("data.root=.", "train.precision=fp32", f"train.device={device}", "discriminator_augmentations=[]")
    sessions = {
        name: Session(load_recipe("horse2zebra_mobile", (*base, *(s.replace("FILE", str(weights)) for s in settings))))
        for name, settings in DISCRIMINATORS.items()
    }
    seconds = time_steps(sessions, rounds)
    print("| discriminator | learns (parameters) | seconds a step | images/s |\n|---|---|---|---|")
    for name, session in sessions.items():
        learns = sum(p.numel() for p in session.method.discriminator.parameters() if p.requires_grad)
        print(f"| {name} | {learns:,} | {seconds[name]:.3f} | {1 / seconds[name]:.2f} |")


def time_steps(sessions: dict[str, Session], rounds: int) -> dict[str, float]:
    """Return the median seconds of a step at 256 pixels, batch 1, of each session; all take turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, session in sessions.items():
            batch = {letter: torch.rand(1, 3, 256, 256, device=session.device) * 2 - 1 for letter in "AB"}
            if session.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            session.method.step(batch, torch.Generator().manual_seed(number))
            if session.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def curve(runs: list[str], root: Path, count: int, weights: Path, output: Path, threads: int) -> None:
    """Score the runs' checkpoints and what they started from; draw and print it."""
    torch.set_num_threads(threads)
    inception = load_extractor("benchmarks.inception2015:features", weights, torch.device("cpu"))

    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([inception(chunk)["1280"] for chunk in images.split(16)])

    source, real = pictures(root / "trainA", count), features(pictures(root / "trainB", count))
    opened = [Run.open(folder) for folder in runs]
    seconds = time_steps({run.recipe.name: Session(run.recipe, warm=False) for run in opened}, rounds=5)
    starts: dict[Path, float] = {}
    lines = {}
    for run in opened:
        start, minute = run.recipe.train.init_from, seconds[run.recipe.name] / 60
        if start not in starts:
            starts[start] = frechet_distance(features(translate(str(start), source)), real)
        lines[run.recipe.name] = [(0.0, starts[start])]
        for step in run.checkpoints.steps():
            made = features(translate(str(run.checkpoints.path(step)), source))
            lines[run.recipe.name].append((step * minute, frechet_distance(made, real)))
            print(f"{run.recipe.name}  step {step}  {step * minute:.1f} minutes  {lines[run.recipe.name][-1][1]:.2f}")
    draw(lines, f"FID-1280 of {count} training pictures").save(output)


def draw(lines: dict[str, list[tuple[float, float]]], title: str) -> Image.Image:
    """Return a chart of lines over minutes."""
    width, height, left, bottom, top, right = 760, 420, 60, 50, 44, 150
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    points = [p for line in lines.values() for p in line]
    longest, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    low, high = int(low), int(high) + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + x / longest * (width - left - right)
        return across, height - bottom - (y - low) / (high - low) * (height - bottom - top)

    pen.text((left, 12), title, fill="black", font_size=17)
    for y in range(low, high + 1, max(1, (high - low) // 6)):
        pen.line([at(0, y), at(longest, y)], fill="#dddddd")
        pen.text((at(0, y)[0] - 34, at(0, y)[1] - 8), str(y), fill="black", font_size=14)
    for x in range(0, int(longest) + 1, max(1, int(longest) // 6)):
        pen.text((at(x, low)[0] - 4, height - bottom + 8), str(x), fill="black", font_size=14)
    pen.text((left, height - 22), "minutes of training", fill="black", font_size=14)
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        pen.line([at(*p) for p in line], fill=colour, width=3)
        pen.text((at(*line[-1])[0] + 8, at(*line[-1])[1] - 8), name, fill=colour, font_size=15)
    return sheet


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("speed")
    timing.add_argument("--weights", type=Path, required=True)
    timing.add_argument("--rounds", type=int, default=5)
    timing.add_argument("--device", default="cpu")
    chart = commands.add_parser("curve")
    chart.add_argument("runs", nargs="+")
    chart.add_argument("--root", type=Path, required=True)
    chart.add_argument("--count", type=int, default=200)
    chart.add_argument("--extractor-weights", type=Path, required=True)
    chart.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "speed":
        speed(args.weights, args.threads, args.rounds, pick_device(args.device))
    else:
        curve(args.runs, args.root, args.count, args.extractor_weights, args.output, args.threads)


if __name__ == "__main__":
    main()

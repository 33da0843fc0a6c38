"""Teach a generator to undo another one, by the pairs that the other makes: a start for training the way back.

    python -m benchmarks.undo horse2zebra zebra2horse_mobile -s data.root=datasets/horse2zebra -o undo.safetensors
    qsattn build zebra2horse_mobile -s train.init_from=undo.safetensors ...

Every picture x of the model's source domain, cropped and flipped at random, makes a pair (model(x), x). The recipe's
generator is trained on them by the L1 distance, of pixels and of means of 4 x 4 pixels. It begins with those weights of
the model that fit. What it learns holds for the model's translations; of real pictures it changes little.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from qsattn_plugin import load
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.training.session import describe_generator


def teach(model: str, recipe_name: str, settings: list[str], out: Path, steps: int, batch: int, rate: float) -> None:
    """Train, and write a file for ``train.init_from``."""
    torch.manual_seed(0)
    recipe = load_recipe(recipe_name, settings)
    data, channels = recipe.data, recipe.data.channels
    source = "AB"[data.direction == "AtoB"]  # the domain that the recipe translates to is the one the model starts from
    images, side, crop = recipe.build("data").split(f"train{source}"), data.resize, data.crop
    there = load(model).generator.eval().requires_grad_(False)
    back = recipe.build("generator", in_channels=channels, out_channels=channels).train()
    own, theirs = back.state_dict(), there.state_dict()
    back.load_state_dict({k: theirs[k] if k in theirs and theirs[k].shape == t.shape else t for k, t in own.items()})
    kept = [
        F.interpolate(images[i][None].float(), (side, side), mode="bicubic", antialias=True)[0].clamp(0, 255).byte()
        for i in range(len(images))
    ]

    def draw() -> torch.Tensor:
        one = kept[int(torch.randint(len(kept), ()))]
        top, left = (int(torch.randint(side - crop + 1, ())) for _ in range(2))
        one = to_float(one[:, top : top + crop, left : left + crop])
        return one.flip(-1) if torch.rand(()) < 0.5 else one

    optimizer = torch.optim.Adam(back.parameters(), rate, betas=(0.9, 0.99))
    began, mean = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / steps)
        x = torch.stack([draw() for _ in range(batch)])
        with torch.no_grad():
            translated = there(x)
        y = back(translated)
        loss = F.l1_loss(y, x) + F.l1_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0 or step + 1 == steps:
            print(f"step {step}: loss {mean:.4f}, {time.monotonic() - began:.0f} s", flush=True)
    described = {"forward": {**describe_generator(recipe), "prefix": "generator/"}}
    tensors = {f"generator/{key}": tensor for key, tensor in back.state_dict().items()}
    save_tensors(out, tensors, {"kind": "weights", "generators": described, "step": steps})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipe")
    parser.add_argument("-s", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", dest="out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    teach(arguments.pop("model"), arguments.pop("recipe"), **arguments)

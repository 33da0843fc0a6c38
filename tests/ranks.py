"""What one of several processes does in ``test_distributed.py``: ``python -m tests.ranks FOLDER``, under a launcher.

Rank 0 writes what was found to FOLDER; the test compares. One job for all of it, since starting takes longest.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.training import loop
from qsattn_plugin.training.distributed import World, world
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from tests.conftest import TINY
from tests.test_gradients import build, pictures

#: Objectives without random draws, which would be others for other batches.
EVERYWHERE = "sampler={type: qsattn_global, queries: 16, taps: all}"
CASES = {
    "cut": ["method=cut", "sampler={type: grid, queries: 16}", "objective.r1=1.0", "objective.identity_l1=1"],
    "qsattn": ["method=qsattn", EVERYWHERE],
    "qsattn, accumulated": ["method=qsattn", EVERYWHERE, "train.accumulate=2"],
    "hdce, src, monce and lsesim": [
        "method=cut",
        "sampler={type: grid, queries: 16}",
        "objective.nce=[{type: hdce, weight: 0.1}, {type: src, weight: 0.05}, monce, {type: lsesim, weight: 10}]",
    ],
    "enco": ["method=cut", "sampler={type: grid, queries: 16}", "objective.nce=enco"],
    "simdcl": ["method=simdcl", "sampler={type: grid, queries: 16}", "objective.head_width=8"],
    "cyclegan": ["method=cyclegan"],
    "projected": [
        "method=cut",
        "sampler={type: grid, queries: 16}",
        "discriminator={type: ensemble, of: [{type: projected, model: test_efficientnet, width: 4, pretrained: false},"
        " {type: patchgan, width: 4, layers: 1}]}",
    ],
}
IMAGES = 4


def one_step(case: str, dtype: torch.dtype, here: World) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the gradients and the losses of a step on this rank's share of the images."""
    method = build(*CASES[case], dtype=dtype)
    if not here.main:
        for parameter in method.parameters():  # joining gives every rank rank 0's weights
            parameter.data.add_(1.0)
    here.join(method, torch.device("cpu"))
    method.world = here
    method.base_lr = 0.0
    method.set_rate(1.0)  # the discriminator, stepped first, stays what it is
    share = IMAGES // here.size
    batch = {k: v[here.rank * share :][:share] for k, v in pictures(IMAGES, dtype).items()}
    losses = method.step(batch, torch.Generator().manual_seed(here.rank))
    # Gradients are dropped after use; Adam's first moment after one step is the gradient times 1 - 0.5.
    moments = {k: v / 0.5 for k, v in method.optimizer_state().items() if k.endswith("/exp_avg")}
    return moments, here.all_reduce_mean({name: value.item() for name, value in losses.items()})


def words(here: World) -> dict[str, Any]:
    """What ranks tell each other."""
    found: dict[str, Any] = {
        "all_gather": here.all_gather({"rank": here.rank}),
        "all_reduce_max": [here.all_reduce_max(here.rank * 15), here.all_reduce_max(False)],
        "broadcast": here.broadcast("zero" if here.main else "one"),
        "all_reduce_mean": here.all_reduce_mean(
            {"NCE": float(here.rank), "nonfinite": bool(here.rank), **({"only": 3.0} if here.main else {})}
        ),
        "gather_tensors": [sorted(t) for t in here.gather_tensors({f"image-{here.rank}": torch.zeros(1)})],
    }
    errors = {}
    for name, guilty in (("first", 0), ("second", 1), ("none", None)):
        try:
            with here.sync_errors():
                if here.rank == guilty:
                    raise UserError("the disk is full")
            errors[name] = None
        except UserError as error:
            errors[name] = f"{type(error).__name__}: {error}"
    found["errors"] = here.all_gather(errors)
    return found


def uneven(here: World) -> dict[str, Any]:
    """Gradients that not every rank has, and one that is infinite on one rank, under a gradient scaler."""
    both, one, none = (nn.Parameter(torch.full((2, 3), 1.0)) for _ in range(3))
    both.grad = torch.full((2, 3), 1.0 + here.rank)
    if not here.main:
        one.grad = torch.full((2, 3), 4.0)
    here.average_gradients([both, one, none])
    found: dict[str, Any] = {
        "both": here.all_gather(both.grad.unique().tolist()),
        "one": here.all_gather(one.grad.unique().tolist()),
        "none": here.all_gather(none.grad is None),
    }
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD([both], lr=1.0)
    scaler.scale(both.sum() * (float("inf") if here.rank else 1.0)).backward()
    here.average_gradients([both])
    scaler.step(optimizer)
    scaler.update()
    found["overflow"] = here.all_gather([both.detach().unique().tolist(), scaler.get_scale()])
    return found


def training(here: World, folder: Path) -> dict[str, Any]:
    """Train a method that remembers images, at a stretch and in two parts; return every rank's weights, hashed."""
    sessions: list[Session] = []

    class Kept(Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            sessions.append(self)

    loop.Session = Kept
    recipe = load_recipe("toy", (*TINY, "method=cyclegan", "train.ema=0.9", "objective={pool: 2}"))
    found = {}
    for name, parts in (("whole", [None]), ("parts", [3, None])):
        with here.sync_errors():
            run = Run.create(recipe, folder / name) if here.main else Run(folder / name, recipe)
        for steps in parts:
            loop.fit(run, max_steps=steps)
        digest = hashlib.sha256()
        for tensor in sessions[-1].method.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        found[name] = here.all_gather(digest.hexdigest())
    return found


def main(folder: Path) -> None:
    with world() as here:
        group = weakref.ref(here._cpu_group)
        found = {"size": here.size, "words": words(here), "uneven": uneven(here), "losses": {}}
        found["training"] = training(here, folder)
        to_float = torch.Tensor.float  # what is computed in float32 at least stays in float64, as in `double`
        torch.Tensor.float = lambda t: t if t.dtype == torch.float64 else to_float(t)
        for case in CASES:
            for dtype in (torch.float64, torch.float32):
                name = f"{case} {dtype}"
                tensors, found["losses"][name] = one_step(case, dtype, here)
                if here.main:
                    save_tensors(folder / f"{name}.safetensors", tensors, {})
    found["released"] = group() is None
    if here.main:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(Path(sys.argv[1]))

"""Time and memory of one training step: ours, the plain re-statement of the reference's, and what each measure brings.

    python benchmarks/train_step.py [--threads 2] [--steps 3] [--sizes 128 256] [--devices cpu cuda] [--tables ...]

prints two markdown tables. Both steps change generator, heads and discriminator of the papers' size once, with
QS-Attn's global attention on the two deepest taps. Each case runs in a process of its own: one step warms up, the
fastest of the others counts. Memory on the CPU is the process's resident peak beyond what it holds before the first
step, imports and networks; on CUDA it is the allocator's peak, networks included. The second table switches our
measures off, one at a time, or a setting on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.plain_step import QUERIES, PlainStep, TransposedUpsample, attention_rows
from qsattn_plugin.attention.routes import AttentionRoute
from qsattn_plugin.registry.layers import Upsample, memory_saving
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.methods.base import Method
from qsattn_plugin.training.session import Session

# What is switched off, or on ------------------------------------------------------------------------------------------


def encode_again(method: Method) -> None:
    """Encode the real images apart from translating them."""
    encoder = method.encoder
    encoder.translate = lambda generator, source: (generator(source), encoder.features(generator, source))


def add_losses_first(method: Method) -> None:
    """Keep all graphs until one backward pass."""
    update = method.update

    def at_once(role: str, terms: list[Callable[[], Tensor]], parts: int = 1) -> None:
        every = list(terms)
        terms.clear()
        update(role, [lambda: sum(term() for term in every)], parts)

    method.update = at_once


def whole_matrix(method: Method) -> None:
    """Hold attention as an HW x HW matrix, differentiate all of it, and rank its entropies as the reference does."""

    def choose(features: Tensor, generator: Any, observe: bool) -> AttentionRoute:
        rows = attention_rows(features.flatten(2).transpose(1, 2))
        queries = torch.zeros(len(features), QUERIES, dtype=torch.long, device=features.device)
        return AttentionRoute(rows, queries, features.shape[-2:])

    method.sampler.choose_one = choose


def plain_adam(method: Method) -> None:
    """Adam with its default kernels."""
    for role, optimizer in method.optimizers.items():
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        method.optimizers[role] = torch.optim.Adam(trained, lr=2e-4, betas=(0.5, 0.999))


def graph_of_positives(method: Method) -> None:
    """Build the positives' graph and detach it at its end."""
    (objective,) = method.nce
    nce, objective.detach_positives = objective.forward, False
    objective.forward = lambda anchors, positives: nce(anchors, positives.detach())


def differentiate_everything(method: Method) -> None:
    """Give gradients to the discriminator, too, in the generator's turn."""
    backward = Tensor.backward
    Tensor.backward = lambda loss, inputs=None: backward(loss)


def keep_everything(method: Method) -> None:
    """Use PyTorch's own paddings, blurs and ReLUs, which keep their inputs and outputs."""
    memory_saving.builtin_operators = lambda: True


def transposed_upsampling(method: Method) -> None:
    """Upsample by grouped transposed convolutions."""
    model = method.generator.model
    for name, layer in list(model.named_children()):
        if isinstance(layer, Upsample):
            setattr(model, name, TransposedUpsample(layer.filt))


#: Row -> (what changes the method, settings).
MEASURES: dict[str, tuple[Callable[[Method], None] | None, tuple[str, ...]]] = {
    "our step": (None, ()),
    "without: features of real images from the generator's pass": (encode_again, ()),
    "without: backward split by image": (add_losses_first, ()),
    "without: attention in row tiles, gradient of selected rows alone": (whole_matrix, ()),
    "without: layers that keep less": (keep_everything, ()),
    "without: fused Adam": (plain_adam, ()),
    "without: no graph for the positives": (graph_of_positives, ()),
    "without: no gradients for the judging discriminator": (differentiate_everything, ()),
    "without: upsampling by the bilinear kernel": (transposed_upsampling, ()),
    "with train.channels_last": (None, ("train.channels_last=true",)),
    "with train.compile": (None, ("train.compile=true",)),
}

# One case -------------------------------------------------------------------------------------------------------------


def our_step(size: int, device: str, batch: int, precision: str, measure: str) -> Callable[[dict[str, Tensor]], Any]:
    """Return our step, built from the recipe of the papers' horses, with a measure switched off."""
    change, settings = MEASURES[measure]
    at = (f"data.crop={size}", f"train={{batch_size: {batch}, precision: {precision}, device: {device}}}")
    method = Session(
        load_recipe(
            "horse2zebra",
            (*at, "train={ema: 0, steps: 1000}", "data.root=/nowhere", "sampler.taps=[12, 16]", *settings),
        )
    ).method
    if change is not None:
        change(method)
    return partial(method.step, draws=torch.Generator().manual_seed(0))


def resident(field: str) -> int:
    """Bytes of this process by a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def measured(form: str, size: int, device: str, batch: int, precision: str, threads: int, steps: int) -> dict[str, Any]:
    """Run one case in this process."""
    torch.set_num_threads(threads)
    if form == "reference":
        step: Callable[[dict[str, Tensor]], Any] = PlainStep(torch.device(device)).step
    else:
        step = our_step(size, device, batch, precision, form)
    g = torch.Generator().manual_seed(1)
    images = {x: torch.rand(batch, 3, size, size, generator=g).mul_(2).sub_(1).to(device) for x in "AB"}
    on_cpu = device == "cpu"
    nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 1, 1))  # loads the libraries
    if on_cpu:
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = resident("VmRSS") if on_cpu else 0
    times, cpu_times = [], []
    for _ in range(steps + 1):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        losses = step(images)
        if not on_cpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        cpu_times.append(time.process_time() - cpu_begin)
    assert all(loss.isfinite() for loss in losses.values())
    peak = resident("VmHWM") if on_cpu else torch.cuda.max_memory_allocated()
    return {"seconds": min(times[1:]), "cpu": min(cpu_times[1:]), "peak": peak - before}


def in_a_process(**case: Any) -> dict[str, Any] | None:
    """Run one case in a process of its own; None where it did not fit into the device's memory."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "OutOfMemoryError" in done.stderr:
        return None
    raise RuntimeError(done.stderr)


def in_rounds(cases: list[dict[str, Any]], rounds: int) -> list[dict[str, Any] | None]:
    """Run cases one after the other, all of them so many times, and return the medians of each.

    A process can be 10 % slower than the next one of the same case, and a machine than itself a minute ago.
    """
    found: list[list[dict[str, Any] | None]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, got in zip(cases, found, strict=True):
            if None not in got:
                got.append(in_a_process(**case))
    return [None if None in got else {k: statistics.median(g[k] for g in got) for k in got[0]} for got in found]


# Tables ---------------------------------------------------------------------------------------------------------------


def table(*columns: str) -> None:
    """Print the head of a markdown table."""
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)


def row(head: list[Any], got: dict[str, Any] | None, batch: int, base: dict[str, Any] | None) -> None:
    """Print a case's figures, and how they stand to those of ``base``: images a second by the clock, and by CPU time.

    CPU time, with one thread, holds on a machine that has other work, too; on CUDA it says nothing.
    """
    if got is None:
        print("| " + " | ".join(map(str, head)) + " | - | - | out of memory | - | - | - |", flush=True)
        return
    base_batch = (base or {}).get("batch", batch)
    faster, cheaper = (f"{batch / got[of] * base[of] / base_batch:.2f} x" if base else "-" for of in ("seconds", "cpu"))
    memory = f"{got['peak'] / base['peak']:.2f} x" if base else "-"
    figures = [
        f"{batch / got['seconds']:.3f}",
        f"{got['cpu'] / batch:.2f}",
        f"{got['peak'] / 1e6:.0f}",
        faster,
        cheaper,
        memory,
    ]
    print("| " + " | ".join(map(str, [*head, *figures])) + " |", flush=True)


FIGURES = ("images/s", "CPU s an image", "memory (MB)")


def steps_table(given: argparse.Namespace, common: dict[str, Any]) -> None:
    """Our step against the reference's, whose speed and memory are 1."""
    table(
        "device",
        "image",
        "step",
        "numbers",
        "batch",
        *FIGURES,
        "images/s to reference",
        "by CPU time",
        "memory to reference",
    )
    for device in given.devices:
        for size in given.sizes if device == "cpu" else [256]:
            one = {"size": size, "device": device, **common}
            cases = [{"form": "reference", "batch": 1, "precision": "fp32", **one}]
            for precision in ("fp32",) if device == "cpu" else ("fp32", "bf16"):
                for batch in given.batches or ((1,) if device == "cpu" else (1, 4, 8)):
                    cases.append({"form": "our step", "batch": batch, "precision": precision, **one})
            base, *others = in_rounds(cases, given.rounds)
            row([device, f"{size} px", "reference", "fp32", 1], base, 1, None)
            for case, got in zip(cases[1:], others, strict=True):
                head = [device, f"{size} px", "ours", case["precision"], case["batch"]]
                row(head, got, case["batch"], base and {**base, "batch": 1})


def measures_table(given: argparse.Namespace, common: dict[str, Any]) -> None:
    """Our step with one measure off or on, against our step."""
    table("device", "image", "", *FIGURES, "images/s to ours", "by CPU time", "memory to ours")
    for device in given.devices:
        for size in given.sizes if device == "cpu" else [256]:
            one = {"size": size, "device": device, "batch": 1, "precision": "fp32", **common}
            found = in_rounds([{"form": form, **one} for form in given.measures], given.rounds)
            for form, got in zip(given.measures, found, strict=True):
                row([device, f"{size} px", form], got, 1, None if got is found[0] else found[0])


def main() -> None:
    """Print the tables, or with ``--case`` one case's figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=3, help="after the one that warms up")
    parser.add_argument("--rounds", type=int, default=3, help="processes a row, whose medians are shown")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="images' sides on the CPU")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes of our step; 1, and 4 and 8 on CUDA")
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--tables", nargs="+", choices=["steps", "measures"], default=["steps", "measures"])
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES), metavar="ROW")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measured(**json.loads(given.case))))
        return
    common = {"threads": given.threads, "steps": given.steps}
    if "steps" in given.tables:
        steps_table(given, common)
    if "measures" in given.tables:
        measures_table(given, common)


if __name__ == "__main__":
    main()

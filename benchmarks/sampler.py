"""Time and memory of query-selected attention, ours and the straightforward HW x HW form, forward and backward.

    python benchmarks/sampler.py [--threads 2] [--repeats 5] [--sizes 256 512] [--devices cpu cuda]

prints a markdown table. Each case runs in a process of its own: the first run warms up, the fastest of the repeats is
shown (and the least CPU time, which with one thread holds on a busy machine too). The extra memory is the peak beyond
what the features, their gradients and the libraries take before the run: on the CPU the process's resident peak, on
CUDA the allocator's. A case that cannot fit is not run; the table says what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from qsattn_plugin.samplers import QSAttnSampler

QUERIES = 256
TAPS = (0, 4, 8, 12, 16)
ATTENTIVE = {"two deep": (12, 16), "all five": TAPS}
FORMS = ("ours", "straightforward")


def feature_maps(taps: tuple[int, ...], size: int, device: str, seed: int) -> list[torch.Tensor]:
    """Random features of these taps of the ResNet generator, with norms as on pictures at initialisation."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(3, size + 6), (128, size), (256, size // 2), (256, size // 4), (256, size // 4)]
    squared_norms = [1.0, 64.0, 128.0, 1300.0, 1300.0]
    maps = []
    for tap, (c, s), norm in zip(TAPS, shapes, squared_norms, strict=True):
        if tap in taps:
            maps.append((torch.randn(1, c, s, s, generator=g) * (norm / c) ** 0.5).to(device).requires_grad_())
            maps[-1].grad = torch.zeros_like(maps[-1])
    return maps


def ours(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the package does."""
    (route,) = QSAttnSampler(taps="all", queries=QUERIES).choose([features])
    return route(target), route(features)


def straightforward(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of all scores, entropy of all rows, sort, gather, multiply."""
    source = features.flatten(2).transpose(1, 2)
    attention = torch.bmm(source, source.transpose(1, 2)).softmax(dim=-1)
    log = attention.log()
    entropy = -(attention * torch.where(log.isinf(), 0.0, log)).sum(dim=-1)
    queries = entropy.sort(dim=-1).indices[:, :QUERIES]
    del log
    rows = attention.gather(1, queries.unsqueeze(-1).expand(-1, -1, attention.shape[-1]))
    return torch.bmm(rows, target.flatten(2).transpose(1, 2)), torch.bmm(rows, source)


def step(form: str, source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    """Route both domains' features, tap by tap, and go back to all of them."""
    one = ours if form == "ours" else straightforward
    sum(o.square().sum() for s, v in zip(source, target, strict=True) for o in one(s, v)).backward()


def resident(field: str) -> int:
    """Bytes of this process by a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def measure(form: str, name: str, size: int, device: str, threads: int, repeats: int, budget: float) -> dict:
    """Run one case in this process."""
    torch.set_num_threads(threads)
    step(
        form, *(feature_maps(ATTENTIVE[name], 32, device, seed) for seed in (0, 1))
    )  # loads the libraries and their work spaces
    source, target = (feature_maps(ATTENTIVE[name], size, device, seed) for seed in (0, 1))
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        before = resident("VmRSS")
    else:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times, cpu_times = [], []
    started = time.perf_counter()
    while len(times) <= repeats and (not times or time.perf_counter() - started + times[-1] < budget):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        step(form, source, target)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        cpu_times.append(time.process_time() - cpu_begin)
        if len(times) == 1:
            peak = resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"seconds": min(times), "cpu": min(cpu_times), "runs": len(times), "extra": peak - before}


def needed(name: str, size: int) -> float:
    """GB of the straightforward form's matrices: each tap's attention, which is kept, and two more of the largest."""
    sides = dict(zip(TAPS, (size + 6, size, size // 2, size // 4, size // 4), strict=True))
    matrices = [4 * sides[tap] ** 4 for tap in ATTENTIVE[name]]
    return (sum(matrices) + 2 * max(matrices)) / 1e9


def available(device: str) -> float:
    """GB that are free."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0] / 1e9
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    """Print the table, or with ``--case`` one case's figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds a case may repeat for")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--case", nargs=4, metavar=("FORM", "NAME", "SIZE", "DEVICE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        form, name, size, device = given.case
        print(json.dumps(measure(form, name, int(size), device, given.threads, given.repeats, given.budget)))
        return
    columns = ("device", "image", "attention on", "form", "time (s)", "CPU time (s)", "runs", "extra memory (MB)")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for device in given.devices:
        for size in given.sizes:
            for name in ATTENTIVE:
                for form in FORMS:
                    head = f"| {device} | {size} px | {name} taps | {form} |"
                    if form != "ours" and needed(name, size) > 0.9 * available(device):
                        print(f"{head} - | - | - | needs {needed(name, size):.1f} GB |", flush=True)
                        continue
                    options = [f"--{o}={getattr(given, o)}" for o in ("threads", "repeats", "budget")]
                    case = [sys.executable, __file__, *options, "--case", form, name, str(size), device]
                    # Freed blocks go back at once: the resident peak is then what is in use, for both forms.
                    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
                    done = subprocess.run(case, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                    got = json.loads(done.stdout)
                    times = f"{got['seconds']:.2f} | {got['cpu']:.2f} | {got['runs']}"
                    print(f"{head} {times} | {got['extra'] / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()

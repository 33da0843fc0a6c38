"""Images a second and peak memory of translation: small pictures in batches, large ones whole and in tiles.

    python benchmarks/translate.py [--generators ...] [--threads 1] [--batches 1 8] [--whole 512 1024]
                                   [--tiled 1024 2048 4096] [--tile 512] [--devices cpu cuda]

prints a markdown table. Every row is measured in a process of its own, which reads a PNG, translates it with a freshly
drawn generator of its usual width in float32, and writes a PNG, as `qsattn translate` does. Memory on the CPU is the
process's resident peak with everything, imports too; on CUDA it is the allocator's. Disk is the most that feature maps
on disk took at any moment. Where a size is measured whole and in tiles, the last column says by how many of 256 levels
the two differ at most.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

from qsattn_plugin.data.images import read_image, write_image
from qsattn_plugin.data.pixels import as_pil, to_channels
from qsattn_plugin.translation.load import fresh
from qsattn_plugin.translation.tiles import TiledTranslation

_BATCH_SIDE = 256


def draw(side: int, folder: Path) -> Path:
    """Make a picture of coarse and fine noise: a PNG of it is as large as a photograph's."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0]
    picture = picture * 225 + 30 * torch.rand(3, side, side, generator=generator)
    path = folder / f"{side}.png"
    write_image(as_pil(picture.clamp(0, 255).to(torch.uint8)), path)
    return path


def resident_peak() -> int:
    """Bytes. On Linux not getrusage's, which a process takes over from the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Translate as the case says, in this process."""
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    translator = fresh(case["generator"]).requires_grad_(False).to(case["device"])
    cuda = case["device"] != "cpu"
    path, out = Path(case["picture"]), Path(case["picture"]).with_suffix(".out.png")
    found: dict[str, Any] = {}

    def once() -> None:
        picture = read_image(path)
        if case["tile"]:
            tiled = TiledTranslation(translator.generator, to_channels(picture, 3), case["tile"])
            write_image(as_pil(tiled.run()), out)
            found["disk"] = tiled.spill.peak
        else:
            for result in translator.translate([picture] * case["batch"]):
                write_image(result, out)
        if cuda:
            torch.cuda.synchronize()

    for _ in range(case["warmup"]):
        once()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(case["times"]):
        once()
    images = case["times"] * case["batch"]
    found["seconds"] = (time.perf_counter() - clock) / images
    found["cpu_seconds"] = (time.process_time() - cpu) / images
    found["memory"] = torch.cuda.max_memory_allocated() if cuda else resident_peak()
    if case["compare"]:
        whole = to_channels(translator.translate(read_image(path)), 3)
        tiled = to_channels(read_image(out), 3)
        found["levels"] = int((whole.int() - tiled.int()).abs().max())
    return found


def cases(arguments: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Return what is measured on a device, each for a process of its own."""
    found = []
    for generator in arguments.generators:
        common = {"generator": generator, "device": device, "threads": arguments.threads, "compare": False}
        for batch in arguments.batches:
            times = max(1, arguments.images // batch)
            found.append(common | {"side": _BATCH_SIDE, "batch": batch, "tile": 0, "times": times, "warmup": 1})
        single = {"batch": 1, "times": 1, "warmup": int(device != "cpu")}
        for side in arguments.whole:
            found.append(common | single | {"side": side, "tile": 0})
        for side in arguments.tiled:
            compare = side in arguments.whole
            found.append(common | single | {"side": side, "tile": arguments.tile, "compare": compare})
    return found


def row(case: dict[str, Any], found: dict[str, Any]) -> str:
    """Return a case's line of the markdown table."""
    how = f"tiles of {case['tile']}" if case["tile"] else f"whole, batch {case['batch']}"
    rate = 1 / found["seconds"]
    cells = [
        case["device"],
        case["generator"],
        f"{case['side']} x {case['side']}",
        how,
        f"{rate:.2f}" if rate >= 1 else f"{rate:.4f}",
        f"{found['cpu_seconds']:.2f}",
        f"{found['memory'] / 1e6:.0f}",
        f"{found['disk'] / 1e9:.2f}" if "disk" in found else "-",
        str(found.get("levels", "-")),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", nargs="+", default=["resnet_9blocks", "mobile_resnet_9blocks"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=16, help="how many pictures of 256 px a row translates")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--whole", nargs="*", type=int, default=[512, 1024], help="sides of pictures translated whole")
    parser.add_argument("--tiled", nargs="*", type=int, default=[1024, 2048, 4096], help="and of those in tiles")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    Image.MAX_IMAGE_PIXELS = None
    print(
        "| device | generator | picture | how | images/s | CPU s an image | peak memory (MB) | disk (GB) | differs by |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for device in arguments.devices:
            for case in cases(arguments, device):
                case["picture"] = str(draw(case["side"], Path(folder)))
                command = [sys.executable, __file__, "--case", json.dumps(case)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    print(f"| {device} | {case['generator']} | {case['side']} | failed |", flush=True)
                else:
                    print(row(case, json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()

"""How large the page is, and how long a first translation takes in Chromium against PyTorch on one thread, in one run.

    python -m benchmarks.web --runtime node_modules/onnxruntime-web [--model horse2zebra]

Needs Chromium and playwright. The page is served from this machine, so that loading it measures no network.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import click
import torch
from PIL import Image

from qsattn_plugin.training.environment import describe_environment
from qsattn_plugin.translation.load import load
from qsattn_plugin.web import write_site

PICTURE = (640, 480)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints no line a request."""

    def log_message(self, *args: object) -> None:
        pass


def in_page(page, path: Path) -> tuple[float, float]:
    """Translate a picture in the page; return the seconds until it is shown, and those of the network alone."""
    page.evaluate("document.getElementById('save').disabled = true")
    began = time.perf_counter()
    page.set_input_files("#file", path)
    while page.evaluate("document.getElementById('save').disabled"):
        page.wait_for_timeout(10)
    return time.perf_counter() - began, float(page.inner_text("#facts").partition(" in ")[2].partition(" s")[0])


@click.command()
@click.option("--runtime", required=True, type=click.Path(path_type=Path))
@click.option("--model", default="horse2zebra")
@click.option("--repeats", default=5)
def main(runtime: Path, model: str, repeats: int) -> None:
    """Time translations in a browser and in PyTorch, and print both."""
    from playwright.sync_api import sync_playwright

    torch.set_num_threads(1)
    translator = load(model)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as work, sync_playwright() as driver:
        site = write_site([(model, translator)], Path(work) / "site", runtime)
        picture = Image.effect_noise(PICTURE, 60).convert("RGB")
        picture.save(path := Path(work) / "photo.png")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site.folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        rows = {}
        for visit in ("first visit", "second visit"):
            began = time.perf_counter()
            page.goto(f"http://localhost:{server.server_port}/")
            page.locator("#status", has_text="Ready").wait_for(timeout=300_000)
            ready = time.perf_counter() - began
            first, _ = in_page(page, path)
            turns = []
            for _ in range(repeats):  # by turns, so that both meet the same machine
                shown, network = in_page(page, path)
                began = time.perf_counter()
                translator.translate(picture)
                turns.append((shown, network, time.perf_counter() - began))
            medians = [round(statistics.median(column), 2) for column in zip(*turns, strict=True)]
            rows[visit] = {
                "threads": page.evaluate("self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1"),
                "until ready": round(ready, 2),
                "first translation": round(first, 2),
                **dict(zip(("shown", "network alone", "PyTorch, 1 thread"), medians, strict=True)),
            }
        version = browser.version
        browser.close()
        server.shutdown()
    click.echo(
        json.dumps(
            {"machine": describe_environment(torch.device("cpu")), "chromium": version, "files": site.files, **rows},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

"""The page in a real browser: what it makes is what Python makes, offline too, and nothing leaves its origin.

Needs Chromium, the Python package playwright, and onnxruntime-web from npm, at node_modules/ or WEB_RUNTIME.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qsattn_plugin.attention import GlobalAttention, LocalAttention
from qsattn_plugin.attention.entropy import tile_entropy
from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.pixels import to_channels, to_float
from qsattn_plugin.errors import UserError
from qsattn_plugin.translation.apply import pad_for
from qsattn_plugin.translation.load import load
from qsattn_plugin.translation.sizes import resize_picture
from qsattn_plugin.web import lay_out, runtime, write_site
from tests.test_cli import qsattn, refused
from tests.test_export import needs, weights_file
from tests.test_rasters import wide_profile

RUNTIME = Path(os.environ.get("WEB_RUNTIME") or Path(__file__).parents[1] / "node_modules" / "onnxruntime-web")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with edges, smooth parts and noise."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    waves = np.stack([np.sin(9 * x + 4 * c) * np.cos(7 * y - c) for c in range(3)], -1)
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09)[..., None]
    values = 128 + 60 * waves + 50 * disc + draws.normal(0, 6, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


# ---- without a browser ----


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("window", [None, 7])
def test_the_exported_rows_are_those_of_training(scale, window):
    """Rows computed at once, with a mask for a window, as the page does, against the tiles and sums of training."""
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(1, 24, 9, 11, generator=draws)
    rows = features.flatten(2)[0]
    mask = torch.zeros(99, 99)
    if window:
        place = torch.arange(99)
        y, x = place // 11, place % 11
        reach = window // 2
        near = ((y[:, None] - y).abs() <= reach) & ((x[:, None] - x).abs() <= reach)
        mask.masked_fill_(~near, -torch.inf)
    selector = GlobalAttention(scale) if window is None else LocalAttention(window, scale)
    expected = selector.log_entropy(features)[0]
    # Both are float32 sums in another order; log H goes to -60 here, and its error with the scores.
    torch.testing.assert_close(tile_entropy(rows.t(), rows, mask, scale), expected, atol=1e-3, rtol=1e-4)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A page with two models: the published toy, and one of another architecture whose trained size is not known."""
    needs("onnx")
    if not (RUNTIME / "dist").is_dir():
        pytest.skip(f"onnxruntime-web is not installed: npm install onnxruntime-web@{runtime.VERSION}")
    folder = tmp_path_factory.mktemp("web")
    photograph(96, 64).save(folder / "disc.png")
    weights_file(folder / "other.safetensors", "swift_resnet_6blocks")
    models = "toy", folder / "other.safetensors"
    more = "--runtime", RUNTIME, "--example", folder / "disc.png"
    done = qsattn("export", *models, "--format", "web", "-o", folder / "site", *more)
    assert done.exit_code == 0, done.output
    assert "a page of 2 models" in done.output and "python -m http.server" in done.output
    return folder / "site"


def test_the_folder_says_what_it_holds(site):
    content = json.loads((site / "site.json").read_text())
    files = [str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()]
    assert sorted(content["files"]) == sorted(files)
    assert [model["name"] for model in content["models"]] == ["toy", "mine"]
    assert [model["trained"] for model in content["models"]] == [64, None]
    version = json.loads((RUNTIME / "package.json").read_text())["version"]
    assert content["runtime"]["version"] == version
    if version == runtime.VERSION:  # what would be linked is what is installed
        for kind, pair in runtime.linked().items():
            if kind != "version":
                for part, facts in pair.items():
                    assert {**facts, "url": ""} == {**content["runtime"][kind][part], "url": ""}
    for name in ("index.html", "sw.js"):
        assert "__" not in (site / name).read_text().replace("__proto__", "")


def test_a_page_is_not_written_over_by_mistake(site, tmp_path):
    args = "toy", "--format", "web", "-o"
    assert "holds a page already" in refused("export", *args, site)
    (tmp_path / "index.html").write_text("mine")
    assert "is not such a page's" in refused("export", *args, tmp_path)
    (tmp_path / "file").write_text("")
    assert "a page is a folder" in refused("export", *args, tmp_path / "file")
    assert "for --format web" in refused("export", "toy", "toy", "--format", "onnx", "-o", tmp_path)
    assert "for --format web" in refused("export", "toy", "--format", "onnx", "-o", tmp_path, "--runtime", tmp_path)


def test_a_folder_that_is_no_runtime_is_told(tmp_path):
    with pytest.raises(UserError, match="not an installed onnxruntime-web: there is no .*npm install"):
        runtime.copied(tmp_path, tmp_path / "site")


def test_what_a_page_cannot_show_is_told(tmp_path):
    grey = load(weights_file(tmp_path / "grey.safetensors", "resnet_4blocks", in_channels=1, out_channels=1))
    with pytest.raises(UserError, match="mine translates 1 channels to 1; the page shows colours"):
        write_site([("mine", grey)], tmp_path / "site")
    for folder in "ab":
        (tmp_path / folder).mkdir()
        photograph(8, 8).save(tmp_path / folder / "horse 1.png")
    with pytest.raises(UserError, match=r"two of the examples would be called horse_1\.png"):
        write_site([("mine", grey)], tmp_path / "site", examples=[tmp_path / f / "horse 1.png" for f in "ab"])
    assert not (tmp_path / "site").exists()


# ---- in a browser ----


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without a log."""

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path, handler: type[Quiet]):
    """Serve a folder; yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def address(site):
    with serve(site, Quiet) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install playwright (its own browsers are not needed)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, address):
    """The opened page. Its requests and complaints are in ``page.asked`` and ``page.complaints``."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.asked, page.complaints = [], []
    context.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    ready(page)
    yield page
    context.close()


def ready(page, words: str = "Ready") -> None:
    page.locator("#status", has_text=words).wait_for()


def until(page, condition: str) -> None:
    """Wait for a condition in JavaScript; playwright's own way evaluates text in the page, which its policy forbids."""
    ends = time.monotonic() + 120
    while not page.evaluate(condition):
        assert time.monotonic() < ends, (condition, page.inner_text("#status"), page.inner_text("#error"))
        page.wait_for_timeout(50)


def choose(page, path: Path) -> None:
    until(page, "document.body.ariaBusy === 'false'")
    page.evaluate("document.getElementById('save').disabled = true")  # until the next translation is there
    page.set_input_files("#file", path)


def translated(page, rows: range | None = None) -> np.ndarray:
    """The translation that the page shows, or some rows of it, (H, W, 3), once it is there."""
    until(page, "!document.getElementById('save').disabled && !document.getElementById('stage').hidden")
    script = """([first, count]) => {
        const canvas = document.getElementById('after');
        const height = count || canvas.height;
        const { data } = canvas.getContext('2d').getImageData(0, first, canvas.width, height);
        let text = '';
        for (let i = 0; i < data.length; i += 4096) text += String.fromCharCode(...data.subarray(i, i + 4096));
        return [canvas.width, height, btoa(text)]; }"""
    width, height, text = page.evaluate(script, [rows.start, len(rows)] if rows else [0, 0])
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]


def expected(model: str | Path, picture: Image.Image, at=None) -> np.ndarray:
    return np.asarray(load(model).translate(picture, at=at))


#: Two of 255 levels: a float32 sum in another order may round otherwise at the working size, and once more at the full.
LEVELS = 2


def differs(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape  # not the arrays: their text would be long
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_a_picture_is_translated_as_by_python(page, tmp_path):
    for size, at, choice in (((70, 50), None, "auto"), ((211, 320), None, "auto"), ((211, 320), 128, "128")):
        picture = photograph(*size)
        picture.save(tmp_path / "photo.png")
        page.select_option("#at", choice)
        choose(page, tmp_path / "photo.png")
        levels = differs(translated(page), expected("toy", picture, at))
        assert levels <= LEVELS, (size, choice)
    assert "at 128 × 194 in" in page.inner_text("#facts") and "carried back to 211 × 320" in page.inner_text("#facts")
    page.select_option("#at", "auto")


def test_other_colour_profiles_become_srgb_as_in_python(page, tmp_path):
    photograph(70, 50).save(tmp_path / "wide.png", icc_profile=wide_profile())
    choose(page, tmp_path / "wide.png")
    read = read_image(tmp_path / "wide.png")
    assert differs(np.asarray(read), np.asarray(photograph(70, 50))) > 50
    # Two colour engines, of which each rounds the colours.
    assert differs(translated(page), expected("toy", read)) <= LEVELS + 2


def test_the_other_model_of_the_menu(page, site, tmp_path):
    """Its sides are multiples of 8, so that pictures are padded; its trained size is not known: at their own."""
    picture = photograph(61, 45)
    picture.save(tmp_path / "photo.png")
    choose(page, tmp_path / "photo.png")
    translated(page)
    page.evaluate("document.getElementById('save').disabled = true")
    page.select_option("#model", "mine")
    levels = differs(translated(page), expected(site.parent / "other.safetensors", picture))
    assert levels <= LEVELS
    page.evaluate("document.getElementById('save').disabled = true")
    page.select_option("#model", "toy")
    levels = differs(translated(page), expected("toy", picture))
    assert levels <= LEVELS


def test_the_download_is_the_translation_at_full_size(page, tmp_path):
    picture = photograph(150, 130)
    picture.save(tmp_path / "my photo.png")
    choose(page, tmp_path / "my photo.png")
    shown = translated(page)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "my photo-toy.png"
    assert differs(np.asarray(Image.open(download.value.path()).convert("RGB")), shown) == 0


def test_the_entropy_map_is_pythons(page, tmp_path):
    picture = photograph(200, 140)
    picture.save(tmp_path / "photo.png")
    choose(page, tmp_path / "photo.png")
    translated(page)
    page.click("summary")
    until(page, "document.getElementById('heat').dataset.logEntropy")
    tap = int(page.input_value("#tap"))
    found = torch.tensor(json.loads(page.get_attribute("#heat", "data-log-entropy")))
    model = load("toy")
    images = pad_for(model.generator, to_float(to_channels(resize_picture(picture, 64), 3))[None])
    with torch.no_grad():
        features = model.generator(images, taps=[tap], encode_only=True)[0]
    log_entropy = GlobalAttention().log_entropy(features)[0]
    # Two runtimes' float32 features differ by 1e-5 of their size, and scores are sums of their squares.
    torch.testing.assert_close(found, log_entropy, atol=2e-2, rtol=2e-3)
    ranks = [set(values.argsort()[:64].tolist()) for values in (found, log_entropy)]
    assert len(ranks[0] & ranks[1]) >= 63
    page.click("summary")


def test_a_file_that_is_no_picture_is_told(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    choose(page, tmp_path / "notes.png")
    page.locator("#error", has_text="notes.png is not a picture that this browser can read").wait_for()


def test_twelve_megapixels(page, tmp_path):
    """Upright by its EXIF orientation, as Python reads it; each decodes a PNG exactly. Some rows are compared."""
    picture = photograph(200, 150).resize((4000, 3000), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "large.png", exif=exif, compress_level=1)
    choose(page, tmp_path / "large.png")
    until(page, "document.getElementById('before').width === 3000")
    rows = range(1990, 2010)
    found = translated(page, rows)
    levels = differs(found, expected("toy", picture.transpose(Image.Transpose.ROTATE_270))[rows.start : rows.stop])
    assert levels <= LEVELS


def test_the_camera_takes_a_picture(page):
    page.click("#camera")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.evaluate("document.getElementById('save').disabled = true")
    page.click("#shoot")
    assert translated(page).std() > 5  # Chromium's test picture, not a black one
    assert page.evaluate("document.getElementById('video').srcObject === null")


def test_it_works_by_keyboard(page):
    names = page.evaluate("""() => [...document.querySelectorAll('button, input, select, canvas, video, img')].filter(
        (e) => !(e.ariaLabel || e.labels?.length || e.innerText || e.alt || e.querySelector?.('img[alt]')
            || e.closest('[aria-label]'))).map((e) => e.outerHTML)""")
    assert names == []
    page.focus("#split")
    before = page.evaluate("getComputedStyle(document.getElementById('after')).clipPath")
    page.keyboard.press("End")
    assert page.evaluate("getComputedStyle(document.getElementById('after')).clipPath") != before
    page.focus("#file")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "camera"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out(page, scheme):
    """WCAG AA: a contrast of at least 4.5 between words and what is behind them."""
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate("""() => ['#error', '.hint', 'h1', '#save', '#model'].map((name) => {
        const style = getComputedStyle(document.querySelector(name));
        const clear = style.backgroundColor === 'rgba(0, 0, 0, 0)';
        const behind = clear ? getComputedStyle(document.documentElement) : style;
        return [style.color, behind.backgroundColor].map((c) => c.match(/[0-9.]+/g).slice(0, 3).map(Number)); })""")

    def light(colour):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for front, behind in colours:
        low, high = sorted((light(front), light(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, behind)
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_works_without_a_network_and_asks_nobody_else(page, address, tmp_path):
    """The last test of the page: until now, all that it asked for was its own, and nothing was refused or failed."""
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {address.split("/")[2]}
    page.context.set_offline(True)
    try:
        page.reload()
        ready(page)
        assert page.evaluate("self.crossOriginIsolated")
        picture = photograph(90, 80)
        picture.save(tmp_path / "photo.png")
        choose(page, tmp_path / "photo.png")
        levels = differs(translated(page), expected("toy", picture))
        assert levels <= LEVELS
    finally:
        page.context.set_offline(False)
    assert page.complaints == []
    refused_by = page.evaluate("fetch('https://example.org/').catch((error) => String(error))")
    assert "Failed to fetch" in refused_by  # by the page's own policy
    assert any("Content Security Policy" in text for text in page.complaints)


class Elsewhere(Quiet):
    """A server of another origin, which lets any page read its files, as mirrors of npm do."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()


def test_a_linked_runtime_is_loaded_and_compared_with_its_hash(site, browser, tmp_path, monkeypatch):
    if json.loads((RUNTIME / "package.json").read_text())["version"] != runtime.VERSION:
        pytest.skip(f"another version than {runtime.VERSION} is installed")
    copy, dist = tmp_path / "site", tmp_path / "dist"
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns("runtime"))
    dist.mkdir()
    for name in runtime.FILES["wasm"]:
        shutil.copy(RUNTIME / "dist" / name, dist)
    with serve(dist, Elsewhere) as there, serve(copy, Quiet) as here:
        monkeypatch.setattr(runtime, "ADDRESS", there)
        content = json.loads((copy / "site.json").read_text())
        lay_out(copy, {**content, "runtime": runtime.linked()})
        context = browser.new_context()
        page = context.new_page()
        page.goto(here)
        page.locator("#status", has_text="Ready").wait_for(timeout=120_000)
        context.close()
        (dist / runtime.FILES["wasm"][0]).write_text("export const env = {}")  # another file at the same address
        context = browser.new_context()
        page = context.new_page()
        page.goto(here)
        page.locator("#error", has_text="That did not work").wait_for(timeout=120_000)
        context.close()

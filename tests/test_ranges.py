"""Value ranges: what a file's numbers mean, to a network and back to a file of the same kind."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qsattn_plugin.data import folders
from qsattn_plugin.data.folders import Folders, ImageFiles
from qsattn_plugin.data.images import read_image, read_raster
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.preprocess import Preprocess
from qsattn_plugin.data.ranges import QUANTILES, from_signal, measured, number_type, to_codes, to_signal
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.data.store import Store
from qsattn_plugin.data.unreadable import UnreadableImage
from qsattn_plugin.data.values import with_measured_range
from qsattn_plugin.data.writing import write_raster
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import Recipe, RecipeError
from qsattn_plugin.training.resuming import check_architecture
from qsattn_plugin.training.session import describe_generator
from qsattn_plugin.translation.files import plan
from qsattn_plugin.translation.job import translate_files
from qsattn_plugin.translation.translator import Translator


def identity(channels=1, **options):
    network = nn.Conv2d(channels, channels, 1, bias=False)
    network.weight.data[:] = torch.eye(channels)[:, :, None, None]
    return Translator(network, channels, **options)


def all_of(dtype, shape=(256, 256, 1)):
    """Every 16-bit value once."""
    return np.arange(65536, dtype=np.uint16).view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_every_16_bit_value_survives_codes_and_the_way_back(dtype):
    values = all_of(dtype)
    codes = to_codes(to_signal(Raster(values), "dtype", 1))
    assert codes.dtype == torch.int16
    assert len(codes.unique()) == 65536
    assert np.array_equal(from_signal(to_float(codes), "dtype", dtype), values)


@pytest.mark.parametrize(
    ("values", "value_range"),
    [
        (np.arange(-1000, 3001, dtype=np.int16), (-1000.0, 3000.0)),
        (np.linspace(-1, 1, 4001, dtype=np.float32), (-1.0, 1.0)),
        (np.linspace(-80, 0, 4001, dtype=np.float64), (-80.0, 0.0)),
        (np.linspace(0, 1, 4001, dtype=np.float32), "dtype"),
    ],
)
def test_values_of_a_range_survive_codes(values, value_range):
    values = values.reshape(1, -1, 1)
    back = from_signal(to_float(to_codes(to_signal(Raster(values), value_range, 1))), value_range, values.dtype.name)
    assert back.dtype == values.dtype
    width = 1 if value_range == "dtype" else value_range[1] - value_range[0]
    # Half a code's step, and float32's rounding; whole numbers exactly.
    assert np.abs(back.astype(float) - values).max() <= (0 if values.dtype == np.int16 else width / 65535 * 0.51)


def test_values_outside_are_clipped_and_bands_are_counted():
    values = np.array([[[-2000, 0, 4000]]], np.int16)
    assert to_signal(Raster(values), (-1000, 3000), 3).flatten().tolist() == [-1, -0.5, 1]
    grey = Raster(np.array([[[5]]], np.uint16))
    assert to_signal(grey, (0, 10), 3).flatten().tolist() == [0, 0, 0]
    with_alpha = Raster(np.array([[[0, 5, 10, 9]]], np.uint16), alpha=True)
    assert to_signal(with_alpha, (0, 10), 3).flatten().tolist() == [-1, 0, 1]
    assert to_signal(with_alpha, (0, 10), 1).item() == pytest.approx((0.587 * 5 + 0.114 * 10) / 5 - 1)
    with pytest.raises(UnreadableImage, match=r"has 2 bands, and 3 are wanted \(data.channels\)"):
        to_signal(Raster(values[..., :2]), "dtype", 3)
    with pytest.raises(UnreadableImage, match="holds NaN"):
        to_signal(Raster(np.full((2, 2, 1), np.nan)), (0, 1), 1)


@pytest.mark.parametrize(
    ("value_range", "source", "expected"),
    [
        ("dtype", "float32", "float32"),
        ((-1000, 3000), "int16", "int16"),
        ((-1000, 3000), "uint8", "int16"),
        ((0, 4095), None, "uint16"),
        ((0, 1), "uint16", "float32"),
        ((-80, 0), "float64", "float64"),
        ((0, 100_000), "float16", "float32"),  # more than half precision holds
    ],
)
def test_results_have_the_number_type_of_their_source_where_that_holds_the_range(value_range, source, expected):
    assert number_type(value_range, source) == expected


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_the_ends_of_a_number_type_are_its_own(dtype):
    low, high = from_signal(torch.tensor([[[-1.0, 1.0]]]), "dtype", dtype).flatten().tolist()
    info = np.iinfo(dtype)
    # Of 64 bits, to the 53 that a double has.
    assert low == info.min and 0 <= info.max - high <= info.max / 2**53


def test_the_range_of_a_set_leaves_out_a_thousandth_at_either_end():
    values = np.arange(10001, dtype=np.int16).reshape(1, -1, 1)
    assert measured([Raster(values)]) == (10, 9990)
    with pytest.raises(UnreadableImage, match="all the same"):
        measured([Raster(np.zeros((4, 4, 1)))])


def test_codes_are_resized_by_bands_as_floats_are():
    values = np.random.default_rng(0).random((24, 30, 2)).astype(np.float32)
    codes = to_codes(to_signal(Raster(values), "dtype", 2))
    small = Preprocess("resize_and_crop", resize=12, crop=12)(codes)
    assert small.dtype == torch.int16
    for band in range(2):
        expected = np.asarray(Image.fromarray(values[..., band]).resize((12, 12), Image.Resampling.BICUBIC))
        # A code before, a code after the resize.
        np.testing.assert_allclose((to_float(small[band]).numpy() + 1) / 2, expected, atol=2 / 65535)


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_stores_keep_two_bytes_a_value(budget, tmp_path):
    (tmp_path / "trainA").mkdir()
    for number in range(3):
        np.save(tmp_path / "trainA" / f"{number}.npy", all_of("uint16") + np.uint16(number))
    images = Store(Folders(tmp_path, channels=1, range="dtype").split("trainA"), budget=budget, spill_to=tmp_path)
    assert images.nbytes == 3 * 65536 * 2
    for number in range(3):
        back = from_signal(to_float(images[number]), "dtype", "uint16")
        assert np.array_equal(back, all_of("uint16") + np.uint16(number))
    assert images.notes == ["uint16 with 1 band, uses 0 to 65535"]


def test_data_says_what_its_values_are(tmp_path):
    (tmp_path / "trainA").mkdir()
    values = np.linspace(0, 4080, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "trainA" / "dark.png")

    def note(**options):
        return Store(Folders(tmp_path, channels=1, **options).split("trainA")).notes[0]

    advice = "set data.range, or auto"
    assert note() == f"16-bit, uses 0 to 4080 of 65535, which become 0 to 255: 17 levels; {advice}"
    assert note(range="dtype") == f"uint16 with 1 band, uses 0 to 4080 of the 65535 steps of its type; {advice}"
    clipped = "uint16 with 1 band, uses 0 to 4080; data.range is 0 to 4000, what lies outside is clipped"
    assert note(range=(0, 4000)) == clipped
    assert note(range="auto").endswith("data.range is 4 to 4076, what lies outside is clipped")


RECIPE = """
name: ranges
method: cut
data: {root: ROOT, channels: 1, range: RANGE}
train: {steps: 2}
"""


def recipe(root, value_range):
    return Recipe.from_yaml(RECIPE.replace("ROOT", str(root)).replace("RANGE", value_range))


@pytest.mark.parametrize("shape", [(256, 256, 3), (512, 512, 4), (300, 300, 4), (512, 4096, 1)])
def test_all_bands_and_columns_are_measured(shape):
    height, width, bands = shape
    ramp = np.linspace(1000, 1999, height * width).reshape(height, width, 1)
    values = (ramp + 1000 * np.arange(bands)).astype(np.uint16)
    values[:, 0] = 0  # a border, of less than the thousandth that is cut in the widest picture
    near = np.quantile(values, QUANTILES)
    # Of 16,384 values 16 lie below the limit, give or take 4; on even ramps 3 of those errors are 1 % of the width.
    assert measured([Raster(values)]) == pytest.approx(near, abs=0.01 * bands * 1000)


def test_no_more_files_are_measured_than_were_asked_for(tmp_path, monkeypatch):
    for number in range(7):
        np.save(tmp_path / f"{number}.npy", np.full((8, 8), number, np.uint16))
    read = []
    monkeypatch.setattr(folders, "read_raster", lambda path, page: read.append(path.stem) or read_raster(path, page))
    ImageFiles(sorted(tmp_path.iterdir()), 1, tmp_path, "first", "dtype").measure(4)
    assert sorted(read) == ["0", "2", "4", "6"]


def test_auto_is_measured_once_and_kept(tmp_path):
    for domain, top in (("A", 1000), ("B", 9000)):
        (tmp_path / f"train{domain}").mkdir()
        np.save(tmp_path / f"train{domain}" / "x.npy", np.arange(top + 1, dtype=np.uint16).reshape(1, -1, 1))
    found = with_measured_range(recipe(tmp_path, "auto"))
    assert found.data.range == {"A": (1, 999), "B": (9, 8991)}
    assert Recipe.from_yaml(found.to_yaml()) == found
    assert found.to_dict()["data"]["range"] == {"A": [1, 999], "B": [9, 8991]}  # as a checkpoint's JSON has it
    document = json.loads(json.dumps({"recipe": found.to_dict()}))
    check_architecture(found, document, tmp_path)
    with pytest.raises(RecipeError, match="data.range: is "):
        check_architecture(recipe(tmp_path, "dtype"), document, tmp_path)
    assert with_measured_range(found) is found
    half = with_measured_range(recipe(tmp_path, "{A: auto, B: null}"))
    assert half.data.range == {"A": (1, 999), "B": None}
    assert describe_generator(half)["ranges"] == [[1, 999], None]
    assert describe_generator(half, back=True)["ranges"] == [None, [1, 999]]
    (tmp_path / "trainB" / "x.npy").unlink()
    with pytest.raises(RecipeError, match=r"data.range: no pictures in"):
        with_measured_range(recipe(tmp_path, "auto"))


@pytest.mark.parametrize(
    ("value_range", "problem"),
    [
        ("[3, 1]", "must be two numbers, the lower first, got [3, 1]"),
        ("{A: dtype}", "a mapping must have both A and B"),
        ("types", "must be a list or 'dtype' or 'auto' or a mapping"),
    ],
)
def test_wrong_ranges_are_refused(value_range, problem):
    with pytest.raises(RecipeError, match=re.escape(problem)):
        recipe("/", value_range)


def test_datasets_of_8_bits_refuse_a_range():
    with pytest.raises(RecipeError, match="data.range: dataset 'toy' gives pictures of 8 bits"):
        Recipe.from_yaml("name: x\nmethod: cut\ndata: {type: toy, range: dtype}\ntrain: {steps: 2}\n")


KINDS = {
    "16-bit PNG": (".png", all_of("uint16"), "dtype"),
    "16-bit TIFF": (".tif", all_of("uint16"), (0.0, 65535.0)),
    "signed TIFF": (".tif", np.arange(-1000, 3096, dtype=np.int16).reshape(64, 64, 1), (-1000.0, 3095.0)),
    "float TIFF": (".tif", np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64, 1), (-1.0, 1.0)),
    "RGB and alpha TIFF": (".tif", all_of("uint16", (128, 128, 4)), "dtype"),
    "16-bit RGB PNG": (".png", all_of("uint16", (128, 128, 4))[..., :3], "dtype"),
    "NumPy": (".npy", all_of("int16"), "dtype"),
    "NumPy, zipped": (".npz", np.linspace(0, 1, 4096).reshape(64, 64, 1), "dtype"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_translations_by_an_identity_have_the_values_of_their_source(kind, tmp_path):
    ending, values, value_range = KINDS[kind]
    if kind in ("signed TIFF", "RGB and alpha TIFF", "16-bit RGB PNG", "float TIFF"):
        pytest.importorskip("tifffile")
        pytest.importorskip("imagecodecs")
    source = tmp_path / "in" / f"picture{ending}"
    write_raster(Raster(values, alpha=values.shape[2] == 4), source)
    translator = identity(min(values.shape[2], 3), ranges=(value_range, value_range))
    pairs = plan([source], tmp_path / "out", *translator.kept[:1], other=translator.kept[1])
    outcome = translate_files(translator, pairs)
    assert outcome.written == [tmp_path / "out" / f"picture{ending}"]
    found = read_raster(outcome.written[0]).values
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    width = 1 if values.dtype.kind == "f" and value_range == "dtype" else 2 if values.dtype.kind == "f" else 65535
    assert np.abs(found.astype(float) - values).max() <= width / 65535


def test_translations_have_the_range_of_their_domain(tmp_path):
    np.save(tmp_path / "ct.npy", np.array([[-1000, 1000, 3000]] * 20, np.int16).repeat(8, 1))
    to_grey = identity(ranges=((-1000.0, 3000.0), None))
    translate_files(to_grey, [(tmp_path / "ct.npy", tmp_path / "grey.png")])
    assert to_grey.kept[1] == ".png"
    assert np.unique(np.asarray(read_image(tmp_path / "grey.png"))).tolist() == [0, 128, 255]
    to_ct = identity(ranges=(None, (-1000.0, 3000.0)))
    assert to_ct.kept[1] == ".tif"
    translate_files(to_ct, [(tmp_path / "grey.png", tmp_path / "back.npy")])
    back = np.load(tmp_path / "back.npy")
    assert back.dtype == np.int16
    assert np.unique(back).tolist() == [-1000, 1008, 3000]  # 128 of 255 is a little more than half


def test_deep_pictures_are_carried_back_from_the_trained_size(tmp_path):
    values = (np.indices((96, 96)).sum(0) * 300).astype(np.uint16)[..., None]
    np.save(tmp_path / "a.npy", values)
    translator = identity(ranges=("dtype", "dtype"), trained=32)
    outcome = translate_files(translator, [(tmp_path / "a.npy", tmp_path / "b.npy")])
    assert outcome.carried == {32: 1}
    # Nothing was changed at the working size, so that nothing is carried back; float32 on 0..255.
    assert np.abs(np.load(tmp_path / "b.npy")[..., None].astype(int) - values).max() <= 1
    resized = translate_files(translator, [(tmp_path / "a.npy", tmp_path / "c.npy")], size=48)
    assert not resized.failed
    assert np.load(tmp_path / "c.npy").shape == (48, 48)


def test_formats_that_cannot_hold_a_picture_say_so(tmp_path):
    deep = Raster(np.zeros((4, 4, 1), np.int16))
    with pytest.raises(UserError, match=r"\.jpg cannot hold int16 with 1 band; write \.tif or \.npy"):
        write_raster(deep, tmp_path / "x.jpg")
    with pytest.raises(UserError, match="a PNG cannot hold int16 with 1 band"):
        write_raster(deep, tmp_path / "x.png")
    for bands in (2, 4):
        values = np.arange(16 * bands, dtype=np.uint8).reshape(4, 4, bands)
        write_raster(Raster(values), tmp_path / "x.png")
        assert np.array_equal(read_raster(tmp_path / "x.png").values, values)
    write_raster(Raster(np.full((4, 4, 3), 7, np.uint8)), tmp_path / "x.bmp")
    assert read_image(tmp_path / "x.bmp").getpixel((0, 0)) == (7, 7, 7)

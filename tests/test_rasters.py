"""Every kind of picture file is read right or refused: the table of docs/pictures.md, and pages, ranges, bands."""

from __future__ import annotations

import builtins
import contextlib
import io
import re
import unicodedata
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn

from qsattn_plugin.data import decoders
from qsattn_plugin.data.folders import Folders
from qsattn_plugin.data.images import (
    OneFrame,
    UnreadableImage,
    count_pages,
    read_first,
    read_image,
    read_raster,
    write_image,
)
from qsattn_plugin.data.store import Store
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.pictures import Pictures, partners
from qsattn_plugin.translation.files import each_page, parse_pages
from qsattn_plugin.translation.job import translate_files
from qsattn_plugin.translation.translator import Translator

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

HEIGHT, WIDTH = 12, 20
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "float16", "float32", "float64")
PAGE = Path(__file__).parents[1] / "docs" / "pictures.md"


def values_of(dtype, bands, top=None):
    """Values over the whole range of a type, floats in [0, 1], exact in it; (H, W, C)."""
    draws = np.random.default_rng(bands).random((HEIGHT, WIDTH, bands))
    if np.dtype(dtype).kind == "f":
        return (np.floor(draws * 256) / 256).astype(dtype)
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if top is None else (0, top)
    return np.floor(low + draws * (high - low + 1)).astype(dtype)


def tiff(path, dtype, bands, top=None, planes=False, **options):
    values = values_of(dtype, bands, top)
    data = np.moveaxis(values, -1, 0) if planes else values
    stored = options.pop("stored", lambda x: x)(data[..., 0] if bands == 1 and not planes else data)
    options.setdefault("photometric", "rgb" if bands in (3, 4) else "minisblack")
    options.setdefault("planarconfig", ("separate" if planes else "contig") if bands > 1 else None)
    tifffile.imwrite(path.with_suffix(".tif"), stored, metadata=None, **options)
    return path.with_suffix(".tif"), values


def pillow(path, ending, dtype="uint8", bands=3, **options):
    values = values_of(dtype, bands)
    made = Image.fromarray(values[..., 0] if bands == 1 else values)
    made.save(path.with_suffix(ending), **options)
    return path.with_suffix(ending), values


def codec(path, ending, name, dtype, bands, **options):
    values = values_of(dtype, bands, options.pop("top", None))
    path.with_suffix(ending).write_bytes(
        getattr(imagecodecs, f"{name}_encode")(values[..., 0] if bands == 1 else values, **options)
    )
    return path.with_suffix(ending), values


def pnm(path, bands, top):
    values = values_of("uint16", bands, top)
    head = f"P{5 if bands == 1 else 6} # by hand\n{WIDTH} {HEIGHT}\n{top}\n".encode()
    path.with_suffix(".ppm").write_bytes(head + values.astype(">u2").tobytes())
    return path.with_suffix(".ppm"), values


def array(path, dtype, bands, first=False, zipped=False, order="="):
    values = values_of(dtype, bands)
    data = np.moveaxis(values, -1, 0) if first else values[..., 0] if bands == 1 else values
    if first:  # a band count that cannot be taken for a width
        values = np.repeat(values, 4, 1)
        data = np.repeat(data, 4, 2)
    data = data.astype(data.dtype.newbyteorder(order))
    place = path.with_suffix(".npz" if zipped else ".npy")
    np.savez_compressed(place, picture=data) if zipped else np.save(place, data)
    return place, values


def packed(path, bits, bands=1):
    """A TIFF of less than 8 or of 12 bits a band, without gaps, by hand: tifffile does not write it."""
    values = values_of("uint16", bands, 2**bits - 1)
    rows = []
    for row in values.reshape(HEIGHT, -1):
        text = "".join(f"{value:0{bits}b}" for value in row)
        rows.append(int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big"))
    data = b"".join(rows)
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: 1, 273: 8, 277: bands, 278: HEIGHT, 279: len(data)}
    tags |= {262: 2} if bands == 3 else {}
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + len(tags).to_bytes(2, "little")
    for tag, value in tags.items():
        head += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        head += value.to_bytes(4, "little")
    path.with_suffix(".tif").write_bytes(head + bytes(4))
    return path.with_suffix(".tif"), values


LAYOUTS = {
    "grey": {"bands": 1},
    "RGB": {"bands": 3},
    "RGB, plane by plane": {"bands": 3, "planes": True},
    "RGB and alpha": {"bands": 4, "extrasamples": ["unassalpha"]},
    "RGB and near infrared": {"bands": 4, "extrasamples": ["unspecified"]},
    "2 bands": {"bands": 2},
    "5 bands, plane by plane": {"bands": 5, "planes": True},
    "13 bands": {"bands": 13},
}

#: (format, depth, bands and layout) -> how a file of it is made, from which values.
TABLE = {
    ("TIFF", dtype, layout): partial(tiff, dtype=dtype, **options)
    for dtype in DTYPES
    for layout, options in LAYOUTS.items()
}
TABLE |= {
    ("TIFF", dtype, "grey, white is low"): partial(
        tiff, dtype=dtype, bands=1, photometric="miniswhite", stored=lambda x: np.iinfo(x.dtype).max - x
    )
    for dtype in ("uint8", "uint16", "uint32")
}
TABLE |= {
    ("TIFF", "uint16", f"{layout}, {name}"): partial(tiff, dtype="uint16", **LAYOUTS[layout], **options)
    for layout in ("grey", "RGB", "RGB, plane by plane")
    for name, options in {
        "deflate": {"compression": "zlib", "predictor": True},
        "LZW": {"compression": "lzw"},
        "Zstandard": {"compression": "zstd"},
        "tiles": {"tile": (16, 16)},
        "big-endian": {"byteorder": ">"},
        "BigTIFF": {"bigtiff": True},
    }.items()
}
TABLE |= {
    ("TIFF", "12 of 16 bits", "grey, packed"): partial(packed, bits=12),
    ("TIFF", "uint8", "RGB, Zstandard"): partial(tiff, dtype="uint8", bands=3, compression="zstd"),
    ("TIFF", "uint8", "grey and alpha"): partial(tiff, dtype="uint8", bands=2, extrasamples=["unassalpha"]),
    ("TIFF", "uint16", "grey and alpha"): partial(tiff, dtype="uint16", bands=2, extrasamples=["unassalpha"]),
    ("TIFF", "uint8", "RGB and alpha, plane by plane"): partial(
        tiff, dtype="uint8", bands=4, planes=True, extrasamples=["unassalpha"]
    ),
    ("PNG", "uint8", "grey"): partial(pillow, ending=".png", bands=1),
    ("PNG", "uint8", "RGB"): partial(pillow, ending=".png"),
    ("PNG", "uint8", "RGB and alpha"): partial(pillow, ending=".png", bands=4),
    ("PNG", "uint16", "grey"): partial(pillow, ending=".png", dtype="uint16", bands=1),
    ("PNG", "uint16", "grey and alpha"): partial(codec, ending=".png", name="png", dtype="uint16", bands=2),
    ("PNG", "uint16", "RGB"): partial(codec, ending=".png", name="png", dtype="uint16", bands=3),
    ("PNG", "uint16", "RGB and alpha"): partial(codec, ending=".png", name="png", dtype="uint16", bands=4),
    ("JPEG 2000", "uint8", "RGB"): partial(
        codec, ending=".jp2", name="jpeg2k", dtype="uint8", bands=3, reversible=True, level=0
    ),
    ("JPEG 2000", "uint16", "grey"): partial(
        codec, ending=".jp2", name="jpeg2k", dtype="uint16", bands=1, reversible=True, level=0
    ),
    ("JPEG 2000", "uint16", "RGB"): partial(
        codec, ending=".jp2", name="jpeg2k", dtype="uint16", bands=3, reversible=True, level=0
    ),
    ("JPEG 2000", "12 of 16 bits", "RGB"): partial(
        codec,
        ending=".jp2",
        name="jpeg2k",
        dtype="uint16",
        bands=3,
        top=4095,
        bitspersample=12,
        reversible=True,
        level=0,
    ),
    ("WebP", "uint8", "RGB"): partial(pillow, ending=".webp", lossless=True),
    ("BMP", "uint8", "RGB"): partial(pillow, ending=".bmp"),
    ("TGA", "uint8", "RGB"): partial(pillow, ending=".tga"),
    ("PGM", "10 of 16 bits", "grey"): partial(pnm, bands=1, top=1023),
    ("PGM", "uint16", "grey"): partial(pnm, bands=1, top=65535),
    ("PPM", "12 of 16 bits", "RGB"): partial(pnm, bands=3, top=4095),
    ("NumPy", "uint8", "RGB"): partial(array, dtype="uint8", bands=3),
    ("NumPy", "int16", "grey"): partial(array, dtype="int16", bands=1),
    ("NumPy", "uint16", "grey, big-endian"): partial(array, dtype="uint16", bands=1, order=">"),
    ("NumPy", "float32", "13 bands"): partial(array, dtype="float32", bands=13),
    ("NumPy", "uint16", "13 bands, plane by plane"): partial(array, dtype="uint16", bands=13, first=True),
    ("NumPy", "uint16", "RGB, .npz"): partial(array, dtype="uint16", bands=3, zipped=True),
}


def full_of(depth, dtype):
    """The value of full brightness."""
    bits = re.match(r"\d+", depth)
    return float(2 ** int(bits[0]) - 1 if bits else np.iinfo(dtype).max)


def in_8_bits(values, depth, layout):
    """What a picture's values mean in 8 bits by the rules of read_image; None where they mean nothing there."""
    grey_or_rgb = values.shape[2] in (1, 3) or "alpha" in layout
    if values.dtype.kind == "f":
        return 255 * values.astype(float) if grey_or_rgb else None
    if values.min() < 0 or not grey_or_rgb or values.dtype == np.uint32:
        return None
    return values * (255 / full_of(depth, values.dtype))


@contextlib.contextmanager
def without_extra(monkeypatch):
    """As if the extra were not installed."""
    whole = builtins.__import__

    def lacking(name, *rest):
        if name in ("tifffile", "imagecodecs"):
            raise ImportError(name)
        return whole(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", lacking)
        patch.setattr(decoders, "has_tifffile", lambda: False)
        yield


def tried(read, path):
    """Return what is read, or the reason against."""
    try:
        return read(path)
    except UnreadableImage as error:
        return error.reason


def check_picture(found, values, depth, layout):
    """A picture of 8 bits is what the file was made from, or refused for what it is."""
    expected = in_8_bits(values, depth, layout)
    if isinstance(found, str):
        return "refused"
    assert expected is not None, "read, although it means nothing in 8 bits"
    assert found.size == values.shape[1::-1]
    found = found.convert("LA") if found.mode == "RGBA" and expected.shape[2] == 2 else found  # Pillow's of a deep PNG
    pixels = np.atleast_3d(np.asarray(found)).astype(float)
    assert pixels.shape == expected.shape
    # Half a level by rounding; a whole one where colours keep the high byte.
    assert np.abs(pixels - expected).max() <= (0.51 if values.shape[2] == 1 else 1.0)
    return "read"


@pytest.mark.parametrize("kind", TABLE, ids=", ".join)
def test_every_kind_is_read_right_or_refused(kind, tmp_path, monkeypatch):
    path, values = TABLE[kind](tmp_path / "picture")
    found = read_raster(path)
    assert (found.values.dtype, found.values.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(found.values, values)
    assert found.alpha == ("alpha" in kind[2])
    picture = tried(read_image, path)
    outcome = check_picture(picture, values, *kind[1:])
    assert (outcome == "read") == (in_8_bits(values, *kind[1:]) is not None), picture
    with without_extra(monkeypatch):
        check_picture(tried(read_image, path), values, *kind[1:])
        bare = tried(read_raster, path)
    if isinstance(bare, str):
        assert "tifffile" in bare
    else:
        np.testing.assert_array_equal(bare.values, values)


def mutated(count):
    """TIFFs with up to five wrong bytes, most of them in the header, or cut off."""
    draws = np.random.default_rng(0)
    seeds = []
    for dtype, bands, options in (
        ("uint8", 3, {}),
        ("uint16", 1, {}),
        ("uint16", 3, {"planes": True}),
        ("uint16", 3, {"compression": "zlib"}),
        ("float32", 5, {"compression": "zlib"}),
        ("uint8", 3, {"tile": (16, 16), "compression": "lzw"}),
    ):
        yield_to = io.BytesIO()
        data = values_of(dtype, bands)
        planes = options.pop("planes", False)
        tifffile.imwrite(
            yield_to,
            np.moveaxis(data, -1, 0) if planes else data[..., 0] if bands == 1 else data,
            photometric="rgb" if bands == 3 else "minisblack",
            planarconfig=None if bands == 1 else "separate" if planes else "contig",
            **options,
        )
        seeds.append(yield_to.getvalue())
    for number in range(count):
        content = bytearray(seeds[number % len(seeds)])
        if draws.integers(4) == 0:
            content = content[: draws.integers(1, len(content))]
        for _ in range(draws.integers(1, 6)):
            place = draws.integers(min(len(content), 300) if draws.random() < 0.7 else len(content))
            content[place] = draws.integers(256)
        yield bytes(content)


def test_mutated_tiffs_are_refused_or_have_the_size_of_their_header(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 16)
    monkeypatch.setattr("warnings.showwarning", lambda *_, **__: None)
    path = tmp_path / "mutated.tif"
    outcomes = set()
    for content in mutated(300):
        path.write_bytes(content)
        for read in (read_image, read_raster):
            found = tried(read, path)
            outcomes.add(isinstance(found, str))
            if not isinstance(found, str):
                with contextlib.suppress(Exception), tifffile.TiffFile(path) as file:  # which may know less than Pillow
                    page = file.pages[0]
                    assert sorted(found.size) == sorted((page.imagewidth, page.imagelength))
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": np.zeros((4, 4)), "b": np.zeros((4, 4))}, "holds 2 arrays (a, b)"),
        (np.zeros((2, 2, 2, 2)), "holds an array (2, 2, 2, 2)"),
        (np.zeros((4, 4), complex), "holds complex128 numbers"),
        (np.zeros((4, 0)), "holds an array (4, 0)"),
        (np.array([{}]), "holds an array (1,)"),
        (
            np.full((4, 4), -0.5),
            "its float values range from -0.5 to -0.5; expected 0 to 1, or 0 to 255: give the range",
        ),
    ],
)
def test_arrays_that_are_no_pictures_say_why(content, reason, tmp_path):
    if isinstance(content, dict):
        np.savez(tmp_path / "x.npz", **content)
    else:
        np.save(tmp_path / "x.npy", content)
    with pytest.raises(UnreadableImage, match=re.escape(reason)):
        read_image(next(tmp_path.iterdir()))


def paged(path, ending, count=3):
    """A file of several pages or frames, each of one colour; return the file and the colours."""
    colours = [(40 * n, 255 - 40 * n, 7) for n in range(1, count + 1)]
    frames = [Image.new("RGB", (16, 12), colour) for colour in colours]
    options = {"lossless": True} if ending == ".webp" else {}
    frames[0].save(path.with_suffix(ending), save_all=True, append_images=frames[1:], **options)
    return path.with_suffix(ending), colours


@pytest.mark.parametrize("ending", [".tif", ".gif", ".png", ".webp"])
def test_pages_and_frames_are_counted_and_chosen(ending, tmp_path):
    path, colours = paged(tmp_path / "several", ending)
    assert read_image(path).info["frames"] == count_pages(path) == 3
    for page, colour in enumerate(colours):
        found = read_image(path, page)
        assert found.getpixel((3, 3)) == colour
        assert "frames" not in found.info
    with pytest.raises(UnreadableImage, match="has 3 pages, but page 4 is wanted"):
        read_image(path, 3)
    with pytest.warns(OneFrame, match="has 3 pages or frames: only the first"):
        read_first(path)


def test_pages_of_deep_tiffs_and_of_stacks_are_chosen(tmp_path):
    values = values_of("uint16", 3)
    layers = np.ascontiguousarray(values.transpose(2, 0, 1))
    for name, options in (
        ("pages.tif", {"photometric": "minisblack"}),
        ("stack.tif", {"imagej": True}),
        ("header.tif", {"imagej": True, "truncate": True}),  # one for all, as ImageJ has it beyond 4 GiB
    ):
        tifffile.imwrite(tmp_path / name, layers, **options)
        assert read_raster(tmp_path / name).info["frames"] == count_pages(tmp_path / name) == 3
        for page in range(3):
            assert np.array_equal(read_raster(tmp_path / name, page).values[..., 0], layers[page])


def test_overviews_and_single_pictures_are_one_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif", bigtiff=False) as file:
        file.write(values_of("uint8", 3), photometric="rgb", subifds=0)
        file.write(values_of("uint8", 3)[::2, ::2], photometric="rgb", subfiletype=1)
    assert count_pages(tmp_path / "pyramid.tif") == 1
    assert "frames" not in read_image(tmp_path / "pyramid.tif").info
    assert count_pages(tmp_path / "missing.tif") == 1


def test_translate_names_frames_and_translates_each_page(tmp_path):
    path, colours = paged(tmp_path / "several", ".gif")
    translator = Translator(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)), 3)
    translator.generator[0].weight.data[:] = torch.eye(3)[:, :, None, None]
    outcome = translate_files(translator, [(path, tmp_path / "one.png")])
    assert outcome.frames == [(path, 3)]
    pairs = each_page([(path, tmp_path / "out.png")], "all")
    assert [target.name for _, target, _ in pairs] == [f"out-page-{n}.png" for n in (1, 2, 3)]
    outcome = translate_files(translator, pairs)
    assert not outcome.frames
    assert not outcome.failed
    assert [read_image(target).getpixel((3, 3)) for target in outcome.written] == colours
    assert each_page([(path, tmp_path / "out.png")], 2) == [(path, tmp_path / "out.png", 1)]
    with pytest.raises(UserError, match="is one of the inputs"):
        each_page([(path, tmp_path / "out.png"), (pairs[0][1], tmp_path / "x.png")], "all")
    single = pairs[0][1].rename(tmp_path / "single.png"), tmp_path / "out-page-2.png"
    names = [target.name for _, target, _ in each_page([(path, tmp_path / "out.png"), single], "all")]
    assert names == ["out-page-1.png", "out-page-2-2.png", "out-page-3.png", "out-page-2.png"]  # none shares a file
    assert (parse_pages("all"), parse_pages("3")) == ("all", 3)
    with pytest.raises(ValueError, match="did you mean 'first'"):
        parse_pages("frist")


def test_training_names_frames_and_takes_each_page(tmp_path):
    (tmp_path / "trainA").mkdir()
    _, colours = paged(tmp_path / "trainA" / "several", ".tif")
    images = Store(Folders(tmp_path).split("trainA"))
    assert images.notes == [
        "1 file has several pages or frames (several.tif: 3), of which the first is used; data.pages: all uses each"
    ]
    images = Store(Folders(tmp_path, pages="all").split("trainA"))
    assert images.names == [f"several.tif#{n}" for n in (1, 2, 3)]
    assert [tuple(images[n][:, 0, 0].tolist()) for n in range(3)] == colours
    assert not images.notes
    second = Store(Folders(tmp_path, pages=2).split("trainA"))
    assert tuple(second[0][:, 0, 0].tolist()) == colours[1]
    with pytest.raises(ValueError, match="^pages: must be first, all, or a number"):
        Folders(tmp_path, pages=0)


def wide_profile():
    """A profile with other primaries than sRGB's: sRGB's with red and green at each other's place."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for n in range(int.from_bytes(profile[128:132], "big")):
        entry = profile[132 + 12 * n : 144 + 12 * n]
        places[bytes(entry[:4])] = 132 + 12 * n
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "eRGB".encode("utf-16-be")).replace(b"sRGB", b"eRGB")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_other_colour_profiles_are_converted_on_reading(mode, tmp_path):
    colour = (255, 0, 0, 9)[: len(mode)]
    Image.new(mode, (4, 4), colour).save(tmp_path / "wide.png", icc_profile=wide_profile())
    found = read_image(tmp_path / "wide.png")
    assert found.getpixel((0, 0)) == (0, 255, 0, 9)[: len(mode)]  # its red is sRGB's green
    assert "srgb" in ImageCms.getProfileDescription(io.BytesIO(found.info["icc_profile"])).lower()
    Image.new(mode, (4, 4), colour).save(tmp_path / "broken.png", icc_profile=b"x" * 16 + b"RGB " + b"x" * 200)
    assert read_image(tmp_path / "broken.png").getpixel((0, 0)) == colour


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_profile_and_resolution_are_carried_to_translations(ending, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    Image.new("RGB", (32, 32), (9, 99, 199)).save(source, icc_profile=profile, dpi=(300, 300))
    outcome = translate_files(Translator(nn.Conv2d(3, 3, 1), 3), [(source, target)])
    assert outcome.written == [target]
    with Image.open(target) as found:
        assert found.info["icc_profile"] == profile
        assert [round(float(side)) for side in found.info["dpi"]] == [300, 300]
    Image.new("L", (32, 32), 9).save(source, dpi=(300, 300), icc_profile=profile)  # which is not one of grey
    translate_files(Translator(nn.Conv2d(1, 1, 1), 1), [(source, target)], overwrite=True)
    with Image.open(target) as found:
        assert "icc_profile" not in found.info


@pytest.mark.parametrize("dpi", [(254e6, 254e6), (float("nan"), 300.0), (0, 0)])
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_resolution_that_no_file_can_hold_is_left_out(dpi, ending, tmp_path):
    picture = Image.new("RGB", (32, 32), (9, 99, 199))
    picture.info["dpi"] = dpi
    made = Translator(nn.Conv2d(3, 3, 1), 3).translate(picture)
    assert "dpi" not in made.info
    write_image(made, tmp_path / f"a.{ending}")


def test_names_are_compared_in_one_unicode_form(tmp_path):
    for folder, form in (("mac", "NFD"), ("linux", "NFC")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / (unicodedata.normalize(form, "pferd-ä") + ".png"))
    one, other = (Pictures.find(tmp_path / folder) for folder in ("mac", "linux"))
    assert one.names == other.names
    assert partners(one, other) == [0]


def shallow_png(path, bits, bands):
    """A grey PNG of fewer than 8 bits, by hand: Pillow writes such ones with a palette alone."""
    tif, values = packed(path, bits, bands)
    rows = tif.read_bytes()[8 : 8 + HEIGHT * -(-WIDTH * bits // 8)]
    length = len(rows) // HEIGHT
    data = b"".join(b"\0" + rows[i : i + length] for i in range(0, len(rows), length))
    head = WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    made = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        made += len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
    path.with_suffix(".png").write_bytes(made)
    return path.with_suffix(".png"), values


@pytest.mark.parametrize(
    ("kind", "bits", "bands"),
    [*((kind, bits, 1) for kind in (packed, shallow_png) for bits in (1, 2, 4)), (packed, 4, 3)],
)
def test_depths_below_8_bits_are_stretched_to_them(tmp_path, kind, bits, bands):
    if bands == 3:
        pytest.importorskip("tifffile")
    path, values = kind(tmp_path / "shallow", bits, bands)
    raster = read_raster(path)
    assert raster.full == (0, 255)
    assert np.array_equal(raster.values, values * (255 // (2**bits - 1)))
    assert np.array_equal(np.atleast_3d(np.asarray(raster.picture())), raster.values)

"""One picture: read from a file of any kind, turned into tensors and back, written."""

import os
from functools import partial

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from qsattn_plugin.data.images import UnreadableImage, read_image
from qsattn_plugin.data.pixels import NaNImageError, as_pil, from_tensor, to_channels, to_float


def smooth(height=12, width=16):
    """A smooth colour picture without symmetry, uint8 (H, W, 3): lossy formats keep it to a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([40 + 9 * x, 200 - 9 * y, 60 + 4 * x + 5 * y], axis=-1).astype(np.uint8)


RGB = smooth()
GREY = RGB[:, :, 1]
GREYS = np.dstack([GREY] * 3)
ALPHA = (RGB[:, :, 0] > 100).astype(np.uint8) * 255


def save_grey(path):
    Image.fromarray(GREY).save(path.with_suffix(".jpg"), quality=100)
    return path.with_suffix(".jpg"), "L", GREYS


def palette():
    """A picture of three palette colours, with its colours (H, W, 3)."""
    colours = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230]], dtype=np.uint8)
    indices = (np.indices(GREY.shape).sum(axis=0) % 3).astype(np.uint8)
    image = Image.fromarray(indices).convert("L")
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    return image, colours[indices], indices


def save_palette(path):
    image, colours, _ = palette()
    image.save(path.with_suffix(".png"))
    return path.with_suffix(".png"), "RGB", colours


def save_palette_with_transparency(path):
    image, colours, indices = palette()
    image.save(path.with_suffix(".png"), transparency=1)
    return path.with_suffix(".png"), "RGBA", np.dstack([colours, np.where(indices == 1, 0, 255)])


def save_rgb_with_transparent_colour(path):
    Image.fromarray(RGB).save(path.with_suffix(".png"), transparency=tuple(int(v) for v in RGB[0, 0]))
    alpha = np.where(np.equal(RGB, RGB[0, 0]).all(axis=-1), 0, 255)
    return path.with_suffix(".png"), "RGBA", np.dstack([RGB, alpha])


def save_rgba(path):
    Image.fromarray(np.dstack([RGB, ALPHA])).save(path.with_suffix(".png"))
    return path.with_suffix(".png"), "RGBA", np.dstack([RGB, ALPHA])


def save_la(path):
    Image.fromarray(np.dstack([GREY, ALPHA])).save(path.with_suffix(".png"))
    return path.with_suffix(".png"), "LA", np.dstack([GREY, GREY, GREY, ALPHA])


def deep_values():
    """Values of 16 bits whose nearest 8-bit levels are GREY, from both sides of the exact multiples of 257."""
    return GREY.astype(np.int32) * 257 + np.where(np.indices(GREY.shape).sum(axis=0) % 2, 128, -128).astype(np.int32)


def save_16_bit_png(path):
    values = deep_values().astype(np.uint16)
    image = Image.frombytes("I;16", values.shape[::-1], values.astype("<u2").tobytes())
    image.save(path.with_suffix(".png"))
    return path.with_suffix(".png"), "L", GREYS


def save_big_endian_tiff(path):
    values = deep_values().astype(">u2")
    Image.frombytes("I;16B", values.shape[::-1], values.tobytes()).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif"), "L", GREYS


def save_32_bit_integers(path):
    Image.fromarray(deep_values()).save(path.with_suffix(".tiff"))
    return path.with_suffix(".tiff"), "L", GREYS


def save_16_bit_pgm(path):
    height, width = GREY.shape
    header = f"P5 {width} {height} 65535\n".encode()
    path.with_suffix(".pgm").write_bytes(header + deep_values().astype(">u2").tobytes())
    return path.with_suffix(".pgm"), "L", GREYS


def save_floats(path, values):
    Image.fromarray(values.astype(np.float32)).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif"), "L", GREYS


def save_1_bit(path):
    bits = np.indices(GREY.shape).prod(axis=0) % 2 == 1
    Image.fromarray(bits).save(path.with_suffix(".png"))
    return path.with_suffix(".png"), "L", np.dstack([bits * 255] * 3)


def save_cmyk(path):
    """Pillow writes CMYK JPEG as Adobe does, inverted. The expectation is CMYK's definition, not Pillow's reading."""
    ink = np.dstack([255 - RGB, np.full(GREY.shape, 30, dtype=np.uint8)])
    Image.frombytes("CMYK", GREY.shape[::-1], ink.tobytes()).save(path.with_suffix(".jpg"), quality=100, subsampling=0)
    assert b"Adobe" in path.with_suffix(".jpg").read_bytes()
    return path.with_suffix(".jpg"), "RGB", RGB.astype(float) * (255 - 30) / 255


def save_animation(path, kind, **options):
    frames = [Image.fromarray(pixels) for pixels in (RGB, 255 - RGB)]
    frames[0].save(path.with_suffix(kind), save_all=True, append_images=frames[1:], duration=100, **options)
    return path.with_suffix(kind), "RGB", RGB


# Levels of difference allowed: exact where the format is lossless; JPEG at quality 100 is off by rounding in each of
# two colour transforms and the DCT; CMYK's ink product rounds once more; 192 colours of GIF's palette hold RGB exactly.
KINDS = {
    "grey": (save_grey, 2),
    "palette": (save_palette, 0),
    "palette_with_transparency": (save_palette_with_transparency, 0),
    "rgb_with_transparent_colour": (save_rgb_with_transparent_colour, 0),
    "rgba": (save_rgba, 0),
    "la": (save_la, 0),
    "16_bit_png": (save_16_bit_png, 0),
    "16_bit_big_endian_tiff": (save_big_endian_tiff, 0),
    "16_bit_pgm": (save_16_bit_pgm, 0),
    "32_bit_integers": (save_32_bit_integers, 0),
    "floats_to_1": (partial(save_floats, values=GREY / 255), 0),
    "floats_to_255": (partial(save_floats, values=GREY + 0.25), 0),
    "1_bit": (save_1_bit, 0),
    "cmyk": (save_cmyk, 4),
    "animated_gif": (partial(save_animation, kind=".gif"), 0),
    "animated_webp": (partial(save_animation, kind=".webp", lossless=True), 0),
    "animated_png": (partial(save_animation, kind=".png"), 0),
}


@pytest.mark.parametrize(("save", "tolerance"), KINDS.values(), ids=KINDS)
def test_every_kind_of_picture_is_read(save, tolerance, tmp_path):
    path, mode, expected = save(tmp_path / "picture")
    image = read_image(path)
    assert image.mode == mode
    channels = expected.shape[2]
    pixels = to_channels(image, channels)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (channels, 12, 16)
    difference = (pixels.double() - torch.from_numpy(expected.astype(float)).permute(2, 0, 1)).abs().max()
    assert difference <= tolerance


# How the stored pixels (C, H, W) have to be turned to stand upright, from the EXIF definition: orientation n says where
# row 0 and column 0 of what is stored belong. Written with torch, so that Pillow does not check itself.
ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.transpose(1, 2).flip(2),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.transpose(1, 2).flip(1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("ending", [".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(orientation, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{ending}"
    Image.fromarray(RGB).save(path, exif=exif, **({"lossless": True} if ending == ".webp" else {}))
    stored = torch.from_numpy(RGB).permute(2, 0, 1)
    assert torch.equal(to_channels(read_image(path), 3), ORIENTATIONS[orientation](stored))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_spoil_a_picture(tmp_path):
    path = tmp_path / "broken.png"
    Image.fromarray(RGB).save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff no such directory")
    assert torch.equal(to_channels(read_image(path), 3), torch.from_numpy(RGB).permute(2, 0, 1))


def make_bad(folder, kind):
    """Make a file called x.jpg (or .tif) that cannot be read."""
    path = folder / ("x.tif" if kind in ("values", "nan") else "x.jpg")
    if kind == "text":
        path.write_text("this is not a picture\n" * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "values":
        Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)).save(path)
    elif kind == "nan":
        Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(path)
    elif kind in ("truncated", "bomb"):
        noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path)
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


BAD = {
    "text": "not a picture",
    "empty": "the file is empty",
    "folder": "is a folder",
    "pipe": "not a regular file",
    "missing": "no such file",
    "truncated": "cut off",
    "bomb": "too large",
    "values": "values range from 70000 to 70000",
    "nan": "nan",
}


@pytest.mark.parametrize("kind", BAD)
def test_unreadable_pictures_say_file_and_reason(kind, tmp_path, monkeypatch):
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = make_bad(tmp_path, kind)
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert BAD[kind] in caught.value.reason


def test_lack_of_file_handles_is_not_blamed_on_the_picture(tmp_path, monkeypatch):
    path, _, _ = save_rgba(tmp_path / "good")

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_made_or_dropped(channels):
    rgba = np.dstack([RGB, ALPHA])
    luminance = (RGB @ np.array([299, 587, 114]) / 1000).round()
    alpha_there = to_channels(Image.fromarray(rgba), channels).double().numpy()
    opaque = to_channels(Image.fromarray(RGB), channels).double().numpy()
    colours = luminance[None] if channels < 3 else RGB.transpose(2, 0, 1)
    count = len(colours)
    # Pillow's luminance is fixed point: off by one level at most. Colours behind alpha 0 stay what they are.
    np.testing.assert_allclose(alpha_there[:count], colours, atol=1 if channels < 3 else 0)
    np.testing.assert_array_equal(opaque[:count], alpha_there[:count])
    if channels in (2, 4):
        np.testing.assert_array_equal(alpha_there[-1], ALPHA)
        assert (opaque[-1] == 255).all()


@pytest.mark.parametrize("channels", [0, 5])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(ValueError, match=r"^channels: must be 1, 2, 3 or 4"):
        to_channels(Image.fromarray(RGB), channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_levels_survive_the_way_to_floats_and_back(channels):
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(channels, 1, 1)
    values = to_float(pixels)
    assert values.min() == -1
    assert values.max() == 1
    image = from_tensor(values)
    assert torch.equal(to_channels(image, channels), pixels)
    assert torch.equal(to_channels(as_pil(pixels), channels), pixels)
    assert torch.equal(pixels, torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(channels, 1, 1))


def test_floats_are_rounded_and_clipped():
    level = 2 / 255
    values = torch.tensor([-5.0, -1 + 0.49 * level, -1 + 0.51 * level, 1 - 0.51 * level, 1 - 0.49 * level, 5.0])
    assert to_channels(from_tensor(values.reshape(1, 2, 3)), 1).flatten().tolist() == [0, 0, 1, 254, 255, 255]
    with pytest.raises(NaNImageError, match=r"^image: holds NaN"):
        from_tensor(torch.full((1, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"^image: must be float"):
        from_tensor(torch.zeros(1, 2, 2, dtype=torch.uint8))


def test_the_transparent_value_of_deep_grey_is_kept(tmp_path):
    values = np.array([[0, 257, 514], [257, 65535, 257]], np.uint16)
    image = Image.frombytes("I;16", (3, 2), values.astype("<u2").tobytes())
    if PIL.__version__ == "10.1.0":
        pytest.skip("Pillow 10.1, the oldest, writes no transparent value of deep grey")
    image.save(tmp_path / "a.png", transparency=257)
    found = read_image(tmp_path / "a.png")
    assert found.mode == "LA"
    assert np.asarray(found.getchannel("L")).tolist() == [[0, 1, 2], [1, 255, 1]]
    assert np.asarray(found.getchannel("A")).tolist() == [[255, 0, 255], [0, 255, 0]]

"""The fork world's preprocess modes."""

import pytest
import torch
from PIL import Image

from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.pixels import as_pil, to_channels
from qsattn_plugin.data.preprocess import Preprocess

# (mode, resize, crop), (width, height) -> (width, height) after the resize; worked by hand from the mode's definition.
SIZES = [
    (("resize_and_crop", 286, 256), (100, 300), (286, 286)),
    (("crop", 286, 256), (300, 400), (300, 400)),
    (("crop", 286, 256), (128, 200), (256, 400)),
    (("crop", 286, 256), (300, 128), (600, 256)),
    (("scale_width_and_crop", 300, 256), (600, 1200), (300, 600)),
    (("scale_width_and_crop", 300, 256), (600, 300), (512, 256)),  # 300 x 150 is too low: enlarged
    (("scale_shortside_and_crop", 300, 256), (600, 1200), (600, 1200)),
    (("scale_shortside_and_crop", 300, 256), (150, 200), (300, 400)),
    (("scale_width", 300, 256), (600, 303), (300, 152)),  # 151 is rounded to a multiple of 4
    (("scale_shortside", 300, 256), (200, 150), (400, 300)),
    (("none", 286, 256), (257, 1), (256, 4)),
    (("none", 286, 256), (256, 512), (256, 512)),
]


@pytest.mark.parametrize(("arguments", "size", "expected"), SIZES)
def test_preprocess_sizes(arguments, size, expected):
    preprocess = Preprocess(*arguments)
    assert preprocess.size(*size) == expected
    result = preprocess(torch.zeros(3, size[1], size[0], dtype=torch.uint8))
    assert result.shape == (3, expected[1], expected[0])
    crop = preprocess.crop_size
    assert crop == (arguments[2] if arguments[0].endswith("crop") else None)
    tested = preprocess.for_test()(torch.zeros(3, size[1], size[0], dtype=torch.uint8))
    assert tested.shape == (result.shape if crop is None else (3, crop, crop))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_preprocess_resizes_as_pillow_and_takes_the_middle_for_tests(channels):
    image = torch.randint(0, 256, (channels, 40, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = to_channels(as_pil(image).resize((12, 20), Image.Resampling.BICUBIC), channels)
    assert torch.equal(Preprocess("scale_width", resize=12)(image), expected)
    assert torch.equal(Preprocess("scale_width_and_crop", 16, 12).for_test()(image), expected[:, 4:16])
    assert torch.equal(Preprocess("none")(image), image)


def test_preprocess_refuses_what_cannot_work():
    for arguments, name in [
        ({"mode": "resize"}, "mode"),
        ({"resize": 128, "crop": 256}, "resize"),
        ({"mode": "scale_width", "resize": 0}, "resize"),
        ({"crop": 50}, "crop"),
        ({"crop": 0}, "crop"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}: must be"):
            Preprocess(**arguments)
    with pytest.raises(UnreadableImage, match="9000 x 2 pixels would have to become 1152000 x 256"):
        Preprocess("crop")(torch.zeros(3, 2, 9000, dtype=torch.uint8))

"""Label maps of Cityscapes: read whatever they hold, and their figures by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.evaluation.labels import (
    CLASSES,
    LabelMaps,
    class_colours,
    class_numbers,
    compare_labels,
    confusion,
    label_scores,
    of_kind,
    scene,
)
from qsattn_plugin.evaluation.pictures import Pictures
from qsattn_plugin.evaluation.scoring import Evaluation
from tests.metric_parts import folder, greys


def test_label_scores_by_hand():
    true = torch.tensor([[0, 0, 0, 1], [1, 2, 2, 255]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 2, 255, 3]])
    table = confusion(predicted, true, 4)
    assert table.tolist() == [[2, 1, 0, 0, 0], [0, 2, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    # 5 of 7 pixels; 2/3, 2/2 and 1/2 of the three classes; intersections over unions 2/3, 2/3 and 1/2.
    assert label_scores(table) == {
        "pixel_accuracy": pytest.approx(5 / 7),
        "class_accuracy": pytest.approx((2 / 3 + 1 + 1 / 2) / 3),
        "miou": pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3),
    }
    # A class that is predicted and never true counts in mIoU, as 0.
    wrong = label_scores(confusion(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 3))
    assert wrong == {"pixel_accuracy": 0.5, "class_accuracy": 0.5, "miou": 0.25}
    with pytest.raises(ValueError, match="^table: "):
        label_scores(torch.zeros(3, 4))


NUMBERS = torch.tensor([[0, 1, 18], [13, 255, 10]])


def painted(numbers: torch.Tensor) -> torch.Tensor:
    colours = torch.tensor([*list(class_colours())[:CLASSES], (0, 0, 0)], dtype=torch.uint8)
    return colours[numbers.clamp(max=CLASSES)].permute(2, 0, 1)


def ids(numbers: torch.Tensor) -> torch.Tensor:
    table = torch.tensor([*class_numbers(), 4])
    return table[numbers.clamp(max=CLASSES)]


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("trainIds", lambda place: greys(place, {"x": NUMBERS})),
        ("labelIds", lambda place: greys(place, {"x": ids(NUMBERS)})),
        ("color", lambda place: folder(place, [painted(NUMBERS)])),
    ],
)
def test_label_maps_of_every_kind_are_told_apart(tmp_path, kind, write):
    maps = LabelMaps(Pictures.find(write(tmp_path / "x")))
    assert maps.kind == kind
    assert torch.equal(maps.read(0), NUMBERS)


def _palette(numbers: torch.Tensor, greys: list[int]) -> Image.Image:
    picture = Image.fromarray(numbers.to(torch.uint8).numpy(), "P")
    picture.putpalette([grey for grey in greys for _ in range(3)])
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        # As quantisation writes it: indices in the order of the colours that are there.
        _palette(torch.tensor([[0, 1, 4], [3, 5, 2]]), [0, 1, 10, 13, 18, 255]),
        # Greys for the eye, of which some are numbers of classes.
        _palette(NUMBERS, [i * 14 % 256 for i in range(256)]),
        Image.merge("LA", [Image.fromarray(NUMBERS.to(torch.uint8).numpy()), Image.new("L", (3, 2), 9)]),
        Image.fromarray(NUMBERS.numpy().astype("float32")),
        Image.frombytes("I;16B", (3, 2), NUMBERS.numpy().astype(">u2").tobytes()),
    ],
    ids=["compact palette", "palette", "alpha", "float", "16 bits"],
)
def test_numbers_are_read_whatever_the_file_keeps_them_in(tmp_path, picture):
    picture.save(tmp_path / f"x.{'png' if picture.mode in ('P', 'LA') else 'tif'}")
    maps = LabelMaps(Pictures.find(tmp_path))
    assert maps.kind == "trainIds" and torch.equal(maps.read(0), NUMBERS)


def test_noise_of_jpeg_does_not_change_the_class(tmp_path):
    blocks = NUMBERS.repeat_interleave(16, 0).repeat_interleave(16, 1)
    maps = LabelMaps(Pictures.find(folder(tmp_path / "x", [painted(blocks)], "jpg")))
    inside = maps.read(0).view(2, 16, 3, 16)[:, 6:10, :, 6:10]  # away from the borders, where JPEG mixes colours
    assert torch.equal(inside, NUMBERS[:, None, :, None].expand_as(inside))


def test_label_files_are_paired_by_scene_and_resized_to_the_truth(tmp_path):
    large = NUMBERS.repeat_interleave(2, 0).repeat_interleave(2, 1)
    true = greys(tmp_path / "t", {"a_gtFine_labelIds": ids(large), "b_gtFine_labelIds": ids(NUMBERS)})
    predicted = folder(tmp_path / "p", [painted(NUMBERS), painted(large)], names=["a_fake_B", "b_leftImg8bit"])
    table, resized = compare_labels(LabelMaps(Pictures.find(predicted)), LabelMaps(Pictures.find(true)))
    assert resized == 2
    assert label_scores(table) == {"pixel_accuracy": 1, "class_accuracy": 1, "miou": 1}
    assert table.sum() == 5 * 4 + 5
    assert [scene(name) for name in ("c/x_leftImg8bit", "c/x_gtFine_color", "3_A", "3_B", "a_b")] == [
        *("c/x", "c/x", "3", "3", "a_b")
    ]
    scores = Evaluation(str(predicted), labels=true).run()
    assert [figure.name for figure in scores.figures] == ["pixel_accuracy", "class_accuracy", "miou"]
    assert scores["miou"].settings["predicted_kind"] == "color"
    assert "2 predictions brought" in scores["miou"].resize


def test_folders_as_cityscapes_has_them_hold_several_files_of_each_scene(tmp_path):
    for name in ("a", "b"):
        greys(tmp_path / "t", {f"{name}_gtFine_labelIds": ids(NUMBERS), f"{name}_gtFine_instanceIds": NUMBERS})
        folder(tmp_path / "t", [painted(NUMBERS)], names=[f"{name}_gtFine_color"])
    found = Pictures.find(tmp_path / "t")
    assert len(found) == 6
    for kind, ending in (("auto", "labelIds"), ("labelIds", "labelIds"), ("color", "color"), ("trainIds", "")):
        chosen = of_kind(found, kind)
        assert len(chosen) == (2 if ending else 6) and all(p.stem.endswith(ending) for p in chosen.paths)
    assert torch.equal(LabelMaps(of_kind(found, "auto")).read(0), NUMBERS)
    one = Pictures.find(folder(tmp_path / "one", [painted(NUMBERS)], names=["a_gtFine_color"]))
    assert of_kind(one, "auto") is one


@pytest.mark.parametrize(("byte", "said"), [(11, "cut off"), (36, "damaged")], ids=["ValueError", "SyntaxError"])
def test_a_damaged_label_map_is_named(tmp_path, byte, said):
    """Pillow answers some damage by one error, some by another."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[byte] = 0
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"a.png: .*{said}"):
        LabelMaps(Pictures.find(tmp_path), "trainIds").read(0)

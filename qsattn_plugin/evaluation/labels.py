"""Label maps of Cityscapes: read from numbers or colours, and compared class by class.

The classes, their numbers and colours are the data set's (Cordts et al., "The Cityscapes Dataset for Semantic Urban
Scene Understanding", 2016), as torchvision lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qsattn_plugin.data.images import open_image, read_image
from qsattn_plugin.data.pixels import to_channels
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.pictures import Pictures, partners

#: How many classes are scored; in ``labelTrainIds`` files they are 0 to 18.
CLASSES = 19
#: The number of what is not scored.
IGNORED = 255


def _classes() -> list[Any]:
    from torchvision.datasets import Cityscapes  # slow to import

    return sorted(Cityscapes.classes, key=lambda one: one.ignore_in_eval)  # those that are scored first


def class_numbers() -> dict[int, int]:
    """Return the scored classes, 0 to 18, by their number in ``labelIds`` files."""
    return {one.id: one.train_id for one in _classes()[:CLASSES]}


def class_colours() -> dict[tuple[int, int, int], int]:
    """Return the class of each colour of Cityscapes, :data:`IGNORED` for those that are not scored."""
    found: dict[tuple[int, int, int], int] = {}
    for one in _classes():
        # The pole group has the pole's colour and the licence plate the car's: the scored class has it.
        found.setdefault(one.color, IGNORED if one.ignore_in_eval else one.train_id)
    return found


Kind = Literal["auto", "color", "labelIds", "trainIds"]
KINDS: tuple[str, ...] = get_args(Kind)

#: Endings that tell files of one scene apart; they do not count in pairing.
_ENDINGS = re.compile(
    r"(_leftImg8bit|_gtFine_color|_gtFine_labelIds|_gtFine_labelTrainIds|_fake_[AB]|_real_[AB]|_[AB])$"
)


def scene(name: str) -> str:
    """Return a name without the ending that says what a file shows of its scene: ``_leftImg8bit``, ``_A``, ..."""
    return _ENDINGS.sub("", name)


#: What Cityscapes' own folders hold of every scene, by kind; instances are not scored.
_CITYSCAPES = {"labelIds": "_labelIds", "trainIds": "_labelTrainIds", "color": "_color", "instances": "_instanceIds"}


def of_kind(pictures: Pictures, kind: Kind) -> Pictures:
    """Return those of a folder's files that hold label maps of a kind, where it holds several files of each scene.

    "auto" takes ``*_labelIds`` before ``*_labelTrainIds`` before ``*_color``, as Cityscapes' gtFine has them.
    """
    by_kind = {
        name: tuple(path for path in pictures.paths if path.stem.endswith(ending))
        for name, ending in _CITYSCAPES.items()
    }
    if sum(map(bool, by_kind.values())) < 2:
        return pictures
    chosen = by_kind[next(name for name in by_kind if by_kind[name])] if kind == "auto" else by_kind[kind]
    return Pictures(pictures.folder, chosen, pictures.size) if chosen else pictures


class LabelMaps:
    """A folder of label maps as numbers of classes.

    Files of one channel hold numbers, those of three (or a palette) colours: a pixel is of the class with the nearest
    colour, so that JPEG's noise does not matter; the colours of what is not scored count among them. The kind "auto"
    takes colours for colours, and numbers for ``labelIds`` if any of them in the first 20 files is over 18 and below
    255 (``trainIds`` have none such), or if files are called ``*_labelIds``.
    """

    def __init__(self, pictures: Pictures, kind: Kind = "auto"):
        self.pictures = pictures
        self.kind = kind if kind != "auto" else self._guess()

    def _guess(self) -> Kind:
        paths = self.pictures.paths[:20]
        if paths[0].stem.endswith(("_labelIds", "_labelTrainIds")):
            return "labelIds" if paths[0].stem.endswith("_labelIds") else "trainIds"
        for path in paths:
            numbers = _numbers(path)
            if numbers is None:
                return "color"
            if ((numbers >= CLASSES) & (numbers != IGNORED)).any():
                return "labelIds"
        return "trainIds"

    def read(self, index: int) -> Tensor:
        """Return one map: int64 (H, W) of 0 to 18 and :data:`IGNORED`.

        Raises:
            UserError: the file cannot be read, or holds something else.
        """
        path = self.pictures.paths[index]
        if self.kind == "color":
            return nearest_class(to_channels(read_image(path), 3))
        numbers = _numbers(path)
        if numbers is None:
            raise UserError(f"{path} is a coloured picture where numbers ({self.kind}) are wanted")
        if self.kind == "labelIds":
            if numbers.max() > 255:
                raise UserError(f"{path} holds {int(numbers.max())}; labelIds are 0 to 33, and 255")
            table = torch.full((256,), IGNORED)
            for number, label in class_numbers().items():
                table[number] = label
            return table[numbers]
        wrong = (numbers >= CLASSES) & (numbers != IGNORED)
        if wrong.any():
            raise UserError(f"{path} holds {int(numbers[wrong][0])}; trainIds are 0 to 18, and 255")
        return numbers


def _numbers(path: Path) -> Tensor | None:
    """The numbers in a file of one channel, int64 (H, W); None where it holds colours."""
    with open_image(path) as picture:
        if picture.mode not in ("L", "LA", "P", "I", "I;16", "I;16B", "F"):
            return None
        values = np.asarray(picture.getchannel("L") if picture.mode == "LA" else picture)
        # 16 bits are taken as they stand: numbers of classes are no grey levels.
        numbers = values.astype(np.int64)
        if picture.mode == "F" and (numbers != values).any():
            return None
        if picture.mode == "P" and (palette := picture.getpalette()):
            colours = np.zeros((256, 3), np.int64)
            colours.flat[: len(palette)] = palette
            if (colours != colours[:, :1]).any():
                return None
            # A palette of numbers of classes, or else one for the eye: then the indices are the numbers.
            if np.isin(palette[::3], (*range(34), IGNORED)).all():
                numbers = colours[numbers, 0]
        return torch.from_numpy(numbers)


def nearest_class(picture: Tensor) -> Tensor:
    """Return the class of the nearest colour for every pixel: uint8 (3, H, W) to int64 (H, W), 255 where not scored."""
    colours, numbers = map(torch.tensor, zip(*class_colours().items(), strict=True))
    height, width = picture.shape[-2:]
    pixels, back = picture.flatten(1).T.unique(dim=0, return_inverse=True)  # few colours, many pixels
    apart = torch.cdist(pixels.float(), colours.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return numbers[apart.argmin(1)][back].view(height, width)


def confusion(predicted: Tensor, true: Tensor, classes: int = CLASSES) -> Tensor:
    """Count pixels of two maps, int64 (H, W), by true class (rows) and predicted class (columns).

    Pixels whose true class is outside 0 to ``classes`` - 1 do not count; the last of ``classes`` + 1 columns is of
    predictions that are no class.
    """
    counts = (true >= 0) & (true < classes)
    guessed = torch.where((predicted >= 0) & (predicted < classes), predicted, classes)
    cells = true[counts] * (classes + 1) + guessed[counts]
    return torch.bincount(cells, minlength=classes * (classes + 1)).view(classes, classes + 1)


def label_scores(table: Tensor) -> dict[str, float]:
    """Return pixel accuracy, class accuracy and mean intersection over union of a :func:`confusion`, each 0 to 1.

    Pixel accuracy is the share of pixels that are right; class accuracy its mean over the classes that the truth has;
    mIoU the mean, over the classes that truth or prediction has, of pixels right / (true + predicted - right).

    Raises:
        ValueError: no pixel counts.
    """
    if not table.sum():
        raise ValueError("table: no pixel has a class")
    table = table.double()
    right, true, predicted = table.diagonal(), table.sum(1), table[:, : len(table)].sum(0)
    union = true + predicted - right
    return {
        "pixel_accuracy": float(right.sum() / true.sum()),
        "class_accuracy": float((right / true)[true > 0].mean()),
        "miou": float((right / union)[union > 0].mean()),
    }


def compare_labels(
    predicted: LabelMaps, true: LabelMaps, done: Callable[[int], None] = lambda count: None
) -> tuple[Tensor, int]:
    """Count all pixels of two folders, paired by name; predictions are brought to the truth's size, nearest.

    Returns:
        The :func:`confusion` over all pairs, and how many predictions were of another size.

    Raises:
        UserError: names that do not match, or a file that cannot be read.
    """
    total = torch.zeros(CLASSES, CLASSES + 1, dtype=torch.int64)
    resized = 0
    for index, other in enumerate(partners(predicted.pictures, true.pictures, scene)):
        guess, truth = predicted.read(index), true.read(other)
        if guess.shape != truth.shape:
            resized += 1
            guess = F.interpolate(guess[None, None].double(), truth.shape, mode="nearest-exact")[0, 0].long()
        total += confusion(guess, truth)
        done(1)
    return total, resized

"""The public data sets of the paper: their sources, contents and domains.

The checksums were published by others for the same files: TensorFlow Datasets for horse2zebra, UVCGAN v2 for AFHQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from qsattn_plugin.data.images import EXTENSIONS

__all__ = ["CATALOGUE", "PublicSet"]


@dataclass(frozen=True)
class PublicSet:
    """A public data set, by its name for ``qsattn data``."""

    name: str
    domains: str  # what A and B show
    licence: str  # the terms of use, in one line
    counts: Mapping[str, int]  # the number of pictures in each split
    #: For each split, the last parts of the paths of its folders in the archive; one of them is enough.
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    url: str | None = None  # of the archive; None where users must fetch it themselves
    file: str = ""  # the archive's name on disk
    sha256: str | None = None  # the archive's checksum; None where it is unknown
    how: str = ""  # what users must fetch and from where, if there is no url

    def choose(self, name: str) -> str | None:
        """Return ``split/file name`` for the path of a picture in the archive; None for other files."""
        path = PurePosixPath(name)
        if path.suffix.lower() not in EXTENSIONS or any(part.startswith((".", "__MACOSX")) for part in path.parts):
            return None
        above = path.parts[:-1]
        for split, endings in self.folders.items():
            for ending in endings:
                parts = tuple(ending.split("/"))
                if above[-len(parts) :] == parts:
                    return f"{split}/{path.name}"
        return None


_SETS = (
    PublicSet(
        name="horse2zebra",
        domains="A horses, B zebras",
        licence="pictures from ImageNet, for research; CycleGAN (Zhu et al. 2017) gathered them",
        counts={"trainA": 1067, "trainB": 1334, "testA": 120, "testB": 140},
        folders={"trainA": ("trainA",), "trainB": ("trainB",), "testA": ("testA",), "testB": ("testB",)},
        url="https://efrosgans.eecs.berkeley.edu/cyclegan/datasets/horse2zebra.zip",
        file="horse2zebra.zip",
        sha256="a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1",
    ),
    # The cats and dogs of AFHQ in its first version, 512 x 512; the 500 of each for validation are the papers' test
    # set. Version 2 has other counts. The wild animals are left out.
    PublicSet(
        name="cat2dog",
        domains="A cats, B dogs",
        licence="AFHQ (Choi et al. 2020, StarGAN v2), CC BY-NC 4.0",
        counts={"trainA": 5153, "trainB": 4739, "testA": 500, "testB": 500},
        folders={
            "trainA": ("train/cat", "trainA"),
            "trainB": ("train/dog", "trainB"),
            "testA": ("val/cat", "test/cat", "testA", "valA"),
            "testB": ("val/dog", "test/dog", "testB", "valB"),
        },
        url="https://www.dropbox.com/s/t9l9o3vsx2jai3z/afhq.zip?dl=1",
        file="afhq.zip",
        sha256="7f63dcc14ef58c0e849b59091287e1844da97016073aac20403ae6c6132b950f",
    ),
    PublicSet(
        name="cityscapes",
        domains="A photos, B label maps; the papers translate labels to photos, which is `data: {direction: BtoA}`",
        licence="Cityscapes (Cordts et al. 2016), for non-commercial use, by agreement with its makers",
        counts={"trainA": 2975, "trainB": 2975, "testA": 500, "testB": 500},
        how=(
            "cityscapes may not be redistributed: register at https://www.cityscapes-dataset.com, "
            "download leftImg8bit_trainvaltest.zip (11 GB, photos) and gtFine_trainvaltest.zip (241 MB, labels) into "
            "one folder, packed or unpacked (leftImg8bit/ and gtFine/), and run\n"
            "    qsattn data cityscapes --root {root} --from THAT_FOLDER"
        ),
    ),
)

#: The public data sets by name.
CATALOGUE: dict[str, PublicSet] = {one.name: one for one in _SETS}

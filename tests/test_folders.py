"""Pictures in folders: found, read as a dataset, written."""

from pathlib import Path

import PIL
import pytest
import torch
from PIL import Image

from qsattn_plugin.data import Dataset, ImageSet
from qsattn_plugin.data.folders import Folders
from qsattn_plugin.data.images import ARRAYS, EXTENSIONS, LeftOut, UnreadableImage, find_images, read_image, write_image
from qsattn_plugin.data.pixels import to_channels
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create

HORSE2ZEBRA = Path(__file__).parents[2] / "shared/data/horse2zebra"

# Smooth, so that lossy formats keep it: red grows to the right, green downwards.
_RAMP = Image.linear_gradient("L").resize((16, 12))
PICTURE = Image.merge(
    "RGB", [_RAMP.transpose(Image.Transpose.ROTATE_90).resize((16, 12)), _RAMP, Image.new("L", (16, 12), 90)]
)
ALPHA = _RAMP.point(lambda v: 255 * (v > 100))


def test_pictures_are_found_in_a_stable_order(tmp_path):
    for name in ("b/2.JPG", "b/10.jpg", "a.png", "Z.PNG", "é.webp", "notes.txt", ".hidden.jpg", ".cache/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.tiff").symlink_to(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b/round").symlink_to(tmp_path)  # a loop
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["Z.PNG", "a.png", "b/10.jpg", "b/2.JPG", "dangling.png", "link.tiff", "é.webp"]


def test_no_pictures_is_an_error_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"no folder .*photo; did you mean 'photos'"):
        find_images(tmp_path / "photo")
    with pytest.raises(UserError, match=r"no pictures in .*\.jpg.*found no files"):
        find_images(tmp_path / "photos")
    (tmp_path / "photos/a.HEIC").touch()
    with pytest.raises(UserError, match=r"found 1 x \.heic"):
        find_images(tmp_path / "photos")
    with pytest.raises(UserError, match=r"a\.HEIC is a file"):
        find_images(tmp_path / "photos/a.HEIC")
    PICTURE.save(tmp_path / "photos/b.png")
    (tmp_path / "photos/notes.txt").touch()
    with pytest.warns(LeftOut, match=r"photos holds pictures that are not read, and left out: 1 x \.heic; "):
        assert [path.name for path in find_images(tmp_path / "photos")] == ["b.png"]


def make_root(tmp_path, *splits):
    for split in splits:
        (tmp_path / split / "deep").mkdir(parents=True)
        PICTURE.save(tmp_path / split / "deep/1.png")
    return tmp_path


def test_folders_dataset(tmp_path):
    make_root(tmp_path, "trainA", "trainB", "valA")
    dataset = create("dataset", "folders", root=tmp_path, channels=1)
    assert isinstance(dataset, Dataset)
    assert [dataset.has(name) for name in ("trainA", "trainB", "testA", "testB")] == [True, True, True, False]
    images = dataset.split("testA")  # valA serves
    assert isinstance(images, ImageSet)
    assert images.names == ["deep/1.png"]
    assert images[0].shape == (1, 12, 16)
    assert images.skipped == []
    with pytest.raises(ValueError, match=r"^name: must be one of"):
        dataset.split("train")


def test_folders_dataset_names_what_is_missing(tmp_path):
    make_root(tmp_path / "zebras", "train_A", "trainB")
    with pytest.raises(UserError, match=r"trainA; did you mean 'train_A'\? .*holds the folders trainB, train_A"):
        Folders(tmp_path / "zebras").split("trainA")
    with pytest.raises(UserError, match=r"zebra does not exist; did you mean 'zebras'"):
        Folders(tmp_path / "zebra").split("trainA")


@pytest.mark.skipif(not HORSE2ZEBRA.is_dir(), reason=f"needs the horse2zebra pictures in {HORSE2ZEBRA}")
def test_the_grey_zebras_are_read_as_colour():
    zebras = Folders(HORSE2ZEBRA).split("trainB")
    for number in (226, 2341, 2361, 2757, 7503, 8008, 9726):
        image = zebras[zebras.names.index(f"n02391049_{number}.jpg")]
        assert image.shape == (3, 256, 256)
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        assert image.float().std() > 1


def test_a_file_that_cannot_be_read_is_named_once(tmp_path):
    root = make_root(tmp_path, "trainA")
    (root / "trainA/text.jpg").write_text("not a picture")
    images = Folders(root).split("trainA")
    assert images.names == ["deep/1.png", "text.jpg"]
    for index in (1, -1):
        with pytest.raises(UnreadableImage):
            images[index]
    assert [name for name, _ in images.skipped] == ["text.jpg"]
    with pytest.raises(ValueError, match=r"^channels: must be 1, 2, 3 or 4"):
        Folders(root, channels=5)


@pytest.mark.parametrize("ending", [ending for ending in EXTENSIONS if ending not in ARRAYS])
def test_every_ending_that_is_found_is_written_and_read(ending, tmp_path):
    if ending == ".avif" and PIL.__version__ == "10.1.0":
        pytest.skip("Pillow 10.1, the oldest, has no AVIF")
    path = tmp_path / f"new/folder/picture{ending}"
    write_image(Image.merge("RGBA", [*PICTURE.split(), ALPHA]), path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    back = to_channels(read_image(path), 3).int()
    assert back.shape == (3, 12, 16)
    if ending != ".pbm":  # Pillow writes PPM under this name; a reader of contents does not mind
        visible = to_channels(ALPHA, 1)[0] > 0
        # JPEG, WebP, AVIF and JPEG 2000 are lossy and GIF has a palette: 32 levels tell this picture from any other.
        difference = (back - to_channels(PICTURE, 3).int()).abs()
        assert difference[:, visible].max() <= 32


def test_writing_says_what_is_wrong(tmp_path):
    image = PICTURE
    with pytest.raises(UserError, match=r"format '.jpgg'; did you mean '\.jpe?g'"):
        write_image(image, tmp_path / "x.jpgg")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not write"):
        write_image(image, tmp_path / "file/x.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(UserError, match="could not write"):
        write_image(image, tmp_path / "taken.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]

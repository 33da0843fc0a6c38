"""Public data sets: from an address or from what people have, to folders that are complete."""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from qsattn_plugin.data import SPLITS
from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.public import get_public_set
from qsattn_plugin.data.public.catalogue import CATALOGUE
from qsattn_plugin.data.public.cityscapes import prepare
from qsattn_plugin.data.public.unpack import BadArchive
from tests.test_cli import qsattn, refused
from tests.web import sha, site, tarred, zipped

__all__ = ["site"]


def picture(shade: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 99, 0)).save(out, kind)
    return out.getvalue()


#: Small sets with the layout of the real ones.
COUNTS = {"trainA": 3, "trainB": 2, "testA": 1, "testB": 1}
LAYOUTS = {
    "horse2zebra": {split: f"horse2zebra/{split}" for split in SPLITS},
    "cat2dog": dict(zip(SPLITS, ("afhq/train/cat", "afhq/train/dog", "afhq/val/cat", "afhq/val/dog"), strict=True)),
}


def members(name: str, counts: dict[str, int] = COUNTS) -> dict[str, bytes]:
    """The archive of a small set, with things in it that are none of the pictures."""
    found = {
        f"{folder}/{i}.jpg": picture(40 * i) for split, folder in LAYOUTS[name].items() for i in range(counts[split])
    }
    return found | {"afhq/train/wild/0.jpg": picture(9), "__MACOSX/horse2zebra/trainA/._0.jpg": b"x", "README.txt": b""}


@pytest.fixture
def published(site, monkeypatch):
    """Put a small set in the place of a real one, on the local server; return its archive."""

    def publish(name: str, content: bytes | None = None) -> bytes:
        content = zipped(members(name)) if content is None else content
        one = dataclasses.replace(
            CATALOGUE[name], counts=COUNTS, url=f"{site.url}/{name}.zip", sha256=sha(content) if content else None
        )
        monkeypatch.setitem(CATALOGUE, name, one)
        site.files[f"/{name}.zip"] = content
        return content

    return publish


def found_below(root: Path) -> dict[str, int]:
    assert sorted(p.name for p in root.iterdir()) == sorted(SPLITS), "nothing else is left"
    return {split: len(list((root / split).iterdir())) for split in SPLITS}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_set_is_downloaded_unpacked_and_checked(workplace, site, published, name):
    content = published(name)
    done = qsattn("data", name, "--root", "data/it")
    assert done.exit_code == 0, done.output
    assert found_below(workplace / "data/it") == COUNTS
    assert read_image(workplace / "data/it/trainA/2.jpg").getpixel((0, 0))[0] == pytest.approx(80, abs=3)  # JPEG
    assert f"{sha(content)} (as published)" in done.output
    assert f"licence: {CATALOGUE[name].licence}" in done.output
    asked = len(site.requests)
    again = qsattn("data", name, "--root", "data/it")
    assert "exists already, nothing was done" in again.output
    assert len(site.requests) == asked


def test_only_the_splits_that_lack_are_put_in_place(workplace, published):
    published("horse2zebra")
    qsattn("data", "horse2zebra", "--root", "it")
    mark = workplace / "it/trainA/0.jpg"
    mark.write_bytes(picture(200))
    for path in (workplace / "it/testB").iterdir():
        path.unlink()
    assert qsattn("data", "horse2zebra", "--root", "it").exit_code == 0
    assert found_below(workplace / "it") == COUNTS
    assert mark.read_bytes() == picture(200)


def test_a_split_with_another_number_of_pictures_is_not_touched(workplace, site, published):
    published("horse2zebra")
    (workplace / "it/trainA").mkdir(parents=True)
    (workplace / "it/trainA/mine.jpg").write_bytes(picture(1))
    assert "trainA holds 1 pictures where horse2zebra has 3" in refused("data", "horse2zebra", "--root", "it")
    (workplace / "it/trainA/mine.jpg").unlink()
    (workplace / "it/testB").touch()
    assert "it/testB is a file" in refused("data", "horse2zebra", "--root", "it")
    (workplace / "it/testB").unlink()
    (workplace / "elsewhere").mkdir()
    (workplace / "it/testB").symlink_to(workplace / "elsewhere")
    assert "it/testB is a link without pictures behind it" in refused("data", "horse2zebra", "--root", "it")
    assert site.requests == []


def test_a_set_that_is_not_whole_or_not_readable_leaves_nothing(workplace, published):
    published("horse2zebra", zipped(members("horse2zebra", COUNTS | {"testA": 0})))
    text = refused("data", "horse2zebra", "--root", "data/it")
    assert "testA 0 (should be 1)" in text
    bad = {**members("horse2zebra"), "horse2zebra/trainA/1.jpg": picture(1)[:300], "horse2zebra/testB/0.jpg": b"text"}
    (workplace / "bad.zip").write_bytes(zipped(bad))
    text = refused("data", "horse2zebra", "--root", "it", "--from", "bad.zip")
    assert "2 of 7 pictures cannot be read: trainA/1.jpg (the file is cut off" in text
    assert "testB/0.jpg (not a picture" in text
    assert not (workplace / "it").exists()
    # The download was good as far as it went; it stays, and is not fetched again.
    assert [p.name for p in (workplace / "data/it").iterdir()] == ["horse2zebra.zip"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"broken" * 99, "neither a zip nor a tar", id="broken"),
        pytest.param(zipped({"../../evil.jpg": picture(1)}), "leads out of the folder", id="evil"),
    ],
)
def test_a_published_archive_that_is_bad_is_refused(workplace, published, content, message):
    published("cat2dog", content)
    assert message in refused("data", "cat2dog", "--root", "data/it")
    assert sorted(p.name for p in workplace.rglob("*")) == ["afhq.zip", "data", "it"]


def test_without_a_network_it_is_said_what_to_place_where(workplace, site, published):
    content = published("horse2zebra")
    site.statuses = [404]
    text = refused("data", "horse2zebra", "--root", "data/it")
    archive = workplace / "data/it/horse2zebra.zip"
    for part in (f"{site.url}/horse2zebra.zip", "404", f"put it at {archive}", "--from horse2zebra.zip"):
        assert part in text
    assert not (workplace / "data/it").exists()

    archive.parent.mkdir()
    archive.write_bytes(b"something else")
    assert "is not the published archive" in refused("data", "horse2zebra", "--root", "data/it")
    archive.write_bytes(content)
    asked = len(site.requests)
    assert qsattn("data", "horse2zebra", "--root", "data/it").exit_code == 0
    assert archive.exists(), "what people put there stays"
    assert len(site.requests) == asked


@pytest.mark.parametrize("given", ["archive", "tar", "folder", "folder of the archive", "the root itself"])
def test_a_set_is_taken_from_what_people_have(workplace, published, given):
    published("cat2dog")
    had = workplace / "had"
    had.mkdir()
    source = had / "afhq.zip"
    source.write_bytes(zipped(members("cat2dog")) + b"")
    if given == "tar":
        source.write_bytes(tarred(members("cat2dog")))
    elif "folder" != given != "the root itself":
        source = had if "of" in given else source
    else:
        with zipfile.ZipFile(source) as file:
            file.extractall(had)
        source.unlink()
        source = had / "afhq"
    root = workplace / "it"
    if given == "the root itself":
        source.rename(root)
        source = root
    done = qsattn("data", "cat2dog", "--root", root, "--from", source)
    assert done.exit_code == 0, done.output
    assert {split: len(list((root / split).iterdir())) for split in SPLITS} == COUNTS
    if given == "tar":
        assert "differs from the published one; all pictures can be read" in done.output


def test_a_mirror_must_have_the_same_archive(workplace, site, published):
    content = published("horse2zebra")
    site.files = {"/mirror/a.zip": content, "/mirror/b.zip": content + b"more"}
    assert "wrong checksum" in refused("data", "horse2zebra", "--root", "b", "--url", f"{site.url}/mirror/b.zip")
    assert qsattn("data", "horse2zebra", "--root", "a", "--url", f"{site.url}/mirror/a.zip").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["hors2zebra"], "did you mean 'horse2zebra'"),
        (["horse2zebra", "--from", "nowhere"], "there is no file or folder nowhere"),
        (["horse2zebra", "--split", "testA"], "always the whole published set"),
        (["toy", "--from", "x"], "for the public sets"),
        (["cityscapes"], "--root it --from THAT_FOLDER"),
        (["cityscapes"], "leftImg8bit_trainvaltest.zip"),
        (["cityscapes", "--from", "."], "gtFine_trainvaltest.zip"),
    ],
)
def test_mistakes_are_answered_in_words(workplace, args, message):
    assert message in refused("data", *args, "--root", "it").replace(f"{workplace}/", "")
    assert not (workplace / "it").exists()


def test_the_catalogue_is_complete():
    for one in CATALOGUE.values():
        assert set(one.counts) == set(SPLITS)
        assert bool(one.url) != bool(one.how)
        assert not one.url or (
            set(one.folders) == set(SPLITS) and one.file and re.fullmatch("[0-9a-f]{64}", one.sha256)
        )


def scene(city: str, number: int) -> str:
    return f"{city}/{city}_{number:06}_000019"


#: By split: in the order of their paths.
SCENES = {"train": [scene("aachen", 0), scene("aachen", 1), scene("zurich", 0)], "val": [scene("lindau", 0)]}
CITY = {"trainA": 3, "trainB": 3, "testA": 1, "testB": 1}


def cityscapes() -> dict[str, dict[str, bytes]]:
    """Both archives' members. A photo's red is 10 times its number, its label map's 100 and that."""
    photos, labels = {"license.txt": b"", "README": b""}, {"license.txt": b"", "README": b""}
    for split, scenes in (*SCENES.items(), ("test", [scene("berlin", 0)])):
        for i, name in enumerate(scenes):
            photos[f"leftImg8bit/{split}/{name}_leftImg8bit.png"] = picture(10 * i, "PNG")
            labels[f"gtFine/{split}/{name}_gtFine_color.png"] = picture(100 + 10 * i, "PNG")
            labels[f"gtFine/{split}/{name}_gtFine_labelIds.png"] = picture(0, "PNG")
    return {"leftImg8bit_trainvaltest": photos, "gtFine_trainvaltest": labels}


@pytest.fixture
def city(monkeypatch, tmp_path):
    """The two archives of a small Cityscapes in a folder."""
    monkeypatch.setitem(CATALOGUE, "cityscapes", dataclasses.replace(CATALOGUE["cityscapes"], counts=CITY))
    folder = tmp_path / "city"
    folder.mkdir()
    for name, files in cityscapes().items():
        (folder / f"{name}.zip").write_bytes(zipped(files))
    return folder


@pytest.mark.parametrize("given", ["archives", "folders", "folders of archives"])
def test_cityscapes_is_prepared_as_in_the_papers(workplace, city, given):
    if given != "archives":
        for archive in city.glob("*.zip"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(city if given == "folders" else city / archive.stem)
            archive.unlink()
    done = qsattn("data", "cityscapes", "--root", "it", "--from", city)
    assert done.exit_code == 0, done.output
    assert "BtoA" in done.output
    assert found_below(workplace / "it") == CITY
    for split, shade in (("trainA", 0), ("trainB", 100)):
        for i in range(3):
            image = read_image(workplace / f"it/{split}/{i}_{split[-1]}.jpg")
            assert image.size == (256, 256)
            assert image.getpixel((9, 9))[0] == pytest.approx(shade + 10 * i, abs=2)  # JPEG at quality 100
    assert "nothing was done" in qsattn("data", "cityscapes", "--root", "it").output


def broken(city: Path, name: str, change: dict[str, bytes | None]) -> None:
    files = {k: v for k, v in (cityscapes()[name] | change).items() if v is not None}
    (city / f"{name}.zip").write_bytes(zipped(files))


PHOTO = f"leftImg8bit/train/{SCENES['train'][0]}_leftImg8bit.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({PHOTO: None}, "holds 2 files leftImg8bit/train/*/*_leftImg8bit.png where there should be 3"),
        ({PHOTO: None, PHOTO.replace("aachen", "ulm"): picture(1, "PNG")}, "has a photo or a label map, but not both"),
        ({PHOTO: picture(1, "PNG")[:-40]}, f"train/{SCENES['train'][0]}: cannot be read"),
    ],
)
def test_cityscapes_that_is_not_whole_leaves_nothing(workplace, city, change, message):
    broken(city, "leftImg8bit_trainvaltest", change)
    assert message in refused("data", "cityscapes", "--root", "it", "--from", city)
    assert not (workplace / "it").exists()


def test_a_broken_cityscapes_archive_is_named(tmp_path, city):
    archive = city / "gtFine_trainvaltest.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(BadArchive, match="gtFine_trainvaltest.zip is broken or cut off"):
        prepare(city, tmp_path / "out", CITY, "")


def test_python_callers_get_the_same(tmp_path, published):
    content = published("horse2zebra")
    steps = []
    got = get_public_set(
        CATALOGUE["horse2zebra"], tmp_path / "it", progress=lambda what, done, total: steps.append(what)
    )
    assert (got.existed, got.sha256) == (False, sha(content))
    assert list(dict.fromkeys(steps)) == ["downloading", "unpacking"]
    assert get_public_set(CATALOGUE["horse2zebra"], tmp_path / "it").existed

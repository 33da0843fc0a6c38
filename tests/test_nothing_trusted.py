"""Files from elsewhere: none is believed before it was checked, and every refusal is a line of words."""

from __future__ import annotations

import importlib
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
from click.testing import CliRunner
from PIL import Image

import qsattn_plugin
from qsattn_plugin.cli import main
from qsattn_plugin.data.images import UnreadableImage, read_image
from qsattn_plugin.data.public.unpack import BadArchive, unpack
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create
from qsattn_plugin.registry.parts import accepts
from qsattn_plugin.registry.pretrained import INDEX, entries
from qsattn_plugin.registry.recipe import RecipeError, load_recipe
from qsattn_plugin.storage import DamagedFile, check_file, load_tensors, save_tensors
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.storage.download import DownloadFailed, checksum, download
from qsattn_plugin.storage.weights import misfits, read_weights
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from tests.fuzz import cases, outcomes
from tests.test_fit import build
from tests.web import sha, site, tarred, zipped

__all__ = ["site"]


@pytest.mark.parametrize(
    ("kind", "count"),
    [("recipes", 40), ("pictures", 300), ("weights", 80), ("archives", 300), ("answers", 150), ("folders", 25)],
)
def test_cases_that_nobody_wrote_down(tmp_path, kind, count):
    """A few of what `make fuzz` tries."""
    outcomes.clear()
    findings = list(cases(importlib.import_module(f"tests.fuzz.{kind}").make, "test", count, tmp_path))
    assert not findings, "\n".join(findings)
    assert outcomes["done"] > count / 50 and outcomes["refused"] > count / 5, outcomes


# Documents


def spec(**changes: object) -> dict:
    arguments = {"width": 2, "in_channels": 3, "out_channels": 3}
    whole = {"type": "resnet_4blocks", "arguments": arguments, "channels": 3, "prefix": ""}
    return {**whole, **changes}


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "document",
    [
        *({"arguments": {"width": value}} for value in (-1, 0, "x", None, 1.5, 10**9, 10**30, True, [2], 3)),
        *({"arguments": {"width": 2, "norm": None}}, {"arguments": {"width": 2, "init": [1]}}),
        *({"arguments": {"width": 2, "in_channels": 10**6}}, {"arguments": {"width": 2, "depth": 1}}),
        *({"channels": value} for value in (0, True, 5, -1, "3", 1.0)),
        *({"type": "resnet_9blocks"}, {"type": "nothing"}, {"prefix": "x"}, {"trained": -5}, {"trained": "64"}),
    ],
    ids=str,
)
def test_a_description_is_checked_before_anything_is_allocated(workplace, document):
    save_tensors(Path("w"), create("generator", "resnet_4blocks", width=2).state_dict(), {"generators": {"f": spec()}})
    assert qsattn_plugin.load("w").channels == 3
    tensors, _ = load_tensors(Path("w"))
    save_tensors(Path("w"), tensors, {"generators": {"forward": spec(**document)}})
    with pytest.raises(DamagedFile, match=r"\bw\b") as caught:
        qsattn_plugin.load("w")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        *({"recipe": 5}, {"recipe": {"data": [1]}}, {"recipe": {"data": {"crop": "x"}}}, {"recipe": {"import": [3]}}),
        *({"step": -5}, {"step": 10**30}, {"step": "x"}, {"x": deep(100)}, {"x": deep(500)}, {"generators": None}),
    ],
    ids=lambda change: str(change)[:40],
)
def test_the_rest_of_a_document_is_checked_too(workplace, change):
    tensors = create("generator", "resnet_4blocks", width=2).state_dict()
    save_tensors(Path("w"), tensors, {"generators": {"forward": spec()}, **change})
    with pytest.raises(DamagedFile, match=r"\bw\b") as caught:
        qsattn_plugin.load("w")
    assert "\n" not in str(caught.value)


def test_json_that_is_nested_ten_thousand_deep_is_no_document(workplace):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, "w", metadata={"qsattn": "[" * 10_000 + "]" * 10_000})
    with pytest.raises(DamagedFile, match="is damaged"):
        check_file(Path("w"))


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, (0, -3), (True, 1.0, "1", None)),
        (float, (1, 0.5), (True, "1", None, 10**400)),
        (bool | None, (True, None), (0, "true")),
        (tuple[int, ...], ([], [1, 2]), ([1, "x"], 5, {"a": 1})),
        (tuple[int, float], ([1, 2.0],), (3,)),
        (dict[str, int], ({"a": 1},), ([],)),
        (Path, ("x",), (3,)),
        (torch.nn.Module, (1, "x", None), ()),
    ],
    ids=str,
)
def test_values_of_json_are_checked_against_types(annotation, good, bad):
    assert all(accepts(annotation, value) for value in good)
    assert not any(accepts(annotation, value) for value in bad)


# Tensors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: torch.zeros(1).expand(10**6, 10**6), "claims more values than the file has"),
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to("meta"), "has no values"),
        (lambda t: t.to(torch.complex64), "holds complex64 numbers"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "holds qint8 numbers"),
    ],
)
def test_odd_tensors_of_other_projects_are_refused(workplace, make, message):
    weights = dict(create("generator", "resnet_4blocks", width=2).state_dict())
    weights["model.1.weight"] = make(weights["model.1.weight"])
    torch.save(weights, "net.pth")
    with pytest.raises(DamagedFile, match=rf"net.pth: its tensor model.1.weight .*{message}"):
        read_weights(Path("net.pth"))


def test_what_holds_itself_or_grows_without_end_is_refused(workplace):
    endless: dict = {"x": torch.zeros(1)}
    endless["again"] = endless
    many: object = [torch.zeros(1)]
    for _ in range(40):
        many = [many, many]
    for number, content in enumerate((endless, many)):
        torch.save(content, f"{number}.pth")
        with pytest.raises(DamagedFile, match="nested too deeply, without end"):
            read_weights(Path(f"{number}.pth"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.complex64])
def test_numbers_that_are_no_weights_are_refused(workplace, dtype):
    weights = create("generator", "resnet_4blocks", width=2).state_dict()
    weights["model.1.weight"] = weights["model.1.weight"].to(dtype)
    if dtype == torch.complex64 and safetensors.__version__ == "0.4.5":
        pytest.skip("safetensors 0.4.5, the oldest, writes no complex numbers")
    save_tensors(Path("w"), weights, {"generators": {"forward": spec()}})
    with pytest.raises(DamagedFile, match=r"model.1.weight: \w+ numbers, the generator has float32"):
        qsattn_plugin.load("w")
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    assert len(misfits(create("generator", "resnet_4blocks", width=2).state_dict(), half)) == 1


def test_a_pointer_or_a_page_is_told_for_what_it_is_wherever_weights_are_read(workplace):
    Path("p.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    Path("p.safetensors").write_text("<!DOCTYPE html>\n<html>Sign in</html>")
    ways = (
        qsattn_plugin.load,
        lambda path: read_weights(Path(path)),
        lambda path: create("encoder", "timm", model="test_convnext", weights=path),
    )
    for name, said in (("p.pth", "is a Git LFS pointer"), ("p.safetensors", "is a web page")):
        for way in ways:
            with pytest.raises(UserError, match=rf"{name} {said}"):
                way(name)


# Checksums


def test_a_flipped_bit_in_any_byte_of_a_file_is_told(workplace):
    document = {"kind": "weights", "generators": {}, "step": 3}
    save_tensors(Path("w"), {"a": torch.arange(60.0), "b": torch.arange(9)}, document)
    whole = Path("w").read_bytes()
    silent = []
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << 5 * at % 8
        Path("w").write_bytes(flipped)
        try:
            load_tensors(Path("w"))
            silent.append(at)
        except DamagedFile:
            pass
    assert silent == []
    Path("w").write_bytes(whole)
    assert check_file(Path("w")) == document


def test_files_without_a_checksum_still_load_and_published_ones_are_compared_by_sha256(workplace):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, "old", metadata={"qsattn": json.dumps({"step": 3})})
    assert load_tensors(Path("old"))[1] == {"step": 3}
    for entry in entries().values():
        path = INDEX.parent / "weights" / entry.file
        assert checksum(path) == entry.sha256 and check_file(path)["generators"]


# Run folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Run, Session]:
    run = build(tmp_path_factory.mktemp("trained") / "run", "train.steps=2", "checkpoint={every: 1, keep: 2}")
    fit(run)
    return run, Session(run.recipe)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("step"),
        lambda d: d.pop("scaler"),
        lambda d: d.pop("recipe"),
        lambda d: d["recipe"].pop("generator"),
        lambda d: d.update(step=-5),
        lambda d: d.update(step=1),
        lambda d: d.update(step=10**30),
        lambda d: d.update(recipe={"data": 3}),
    ],
)
def test_a_checkpoint_with_a_damaged_document_is_passed_over(trained, tmp_path, change):
    run, _ = trained
    found = Checkpoints(tmp_path)
    for step in (1, 2):
        tensors, document = load_tensors(run.checkpoints.path(step))
        if step == 2:
            change(document)
        save_tensors(found.path(step), tensors, document)
    newest, damaged = found.newest()
    assert newest == found.path(1) and len(damaged) == 1 and "step-000000002" in damaged[0]


@pytest.mark.parametrize("change", ["missing", "shape", "numbers", "half a state"])
def test_optimizer_states_that_do_not_fit_are_not_resumed_from(trained, tmp_path, change):
    run, session = trained
    tensors, document = load_tensors(run.checkpoints.path(2))
    names = [name for name in tensors if name.startswith("optimizer/") and name.endswith("model.1.weight/exp_avg")]
    if change == "missing":
        tensors = {name: t for name, t in tensors.items() if not name.startswith(names[0].removesuffix("exp_avg"))}
    elif change == "half a state":
        del tensors[names[0]]
        document["tensors"]["optimizer"] -= 1
    else:
        tensors[names[0]] = tensors[names[0]][:1] if change == "shape" else tensors[names[0]].to(torch.int8)
    save_tensors(tmp_path / "c", tensors, document)
    with pytest.raises(DamagedFile, match="holds .* tensors, and should hold|optimizer/.*exp_avg: "):
        session.restore(tmp_path / "c")
    session.restore(run.checkpoints.path(2))


def test_other_damage_to_a_run_is_passed_over_or_named(trained, workplace):
    run, _ = trained
    lines = ['{"event": "train", "step": "x"}', '{"event": "evaluate", "step": 2}', "[" * 10_000, "[]", '{"step": 1}']
    found = Run(workplace / "run", run.recipe)
    found.folder.mkdir()
    found.log_file.write_text("\n".join(lines) + '\n{"event": "train", "step": 1, "losses": {"D": 1.0}}\n')
    assert found.last("evaluate") == {} and len(found.events("train")) == 1
    found.tidy(2)
    assert found.log_file.read_text().count("\n") == 1
    save_tensors(found.checkpoints.best, {"x": torch.zeros(1)}, {"best": [1]})
    assert found.checkpoints.best_of() == {}
    Path("runs").mkdir()
    Path("runs/.last").write_bytes(b"/nowhere/\xff\xfe\n")
    with pytest.raises(UserError, match="is not a run"):
        Run.open()


# Pictures and names


def bmp(width: int, height: int) -> bytes:
    """A picture of a few bytes whose header claims a size."""
    Image.new("RGB", (4, 4)).save("whole.bmp")
    content = Path("whole.bmp").read_bytes()
    Path("whole.bmp").unlink()
    return content[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + content[26:]


def test_a_picture_that_claims_to_be_huge_is_its_own_fault_alone(workplace, monkeypatch):
    Path("in").mkdir()
    Path("in/huge.bmp").write_bytes(bmp(134_217_729, 1))
    Image.effect_noise((64, 64), 60).convert("RGB").save("in/good.png")
    with pytest.raises(UnreadableImage):
        read_image("in/huge.bmp")
    done = CliRunner().invoke(main, ["map", "in", "-m", "toy", "-o", "maps", "--device", "cpu"])
    assert done.exit_code == 1 and "not drawn: in/huge.bmp: " in done.output and "good-tap" in done.output
    monkeypatch.setattr(Image.Image, "load", lambda self: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):  # for a small picture there is no memory: not its fault
        read_image("in/good.png")


def test_names_of_any_bytes_are_shown_harmlessly(workplace):
    Path("in").mkdir()
    for name in (b"in/\xff.png", b"in/a\x1b[2J\n.png", "in/\u202egpj.png".encode(), b"in/" + b"n" * 251 + b".png"):
        Image.effect_noise((64, 64), 60).convert("RGB").save("x.png")
        os.rename("x.png", name)
    done = CliRunner().invoke(main, ["map", "in", "-m", "toy", "-o", "maps", "--device", "cpu"])
    assert done.exit_code == 1, done.output
    assert "\x1b" not in done.output and "\u202e" not in done.output and "\\x1b[2J\\n-tap" in done.output
    assert len(list(Path("maps").glob("*.png"))) == 3 and "not drawn: in/nnn" in done.output


# Archives and downloads


def sparse() -> bytes:
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    return tarred({"x": info}, "w")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(zipped({"": b"x"}), id="no name"),
        pytest.param(sparse(), id="sparse"),
        pytest.param(tarred({"n" * 300: b"x"}, "w"), id="long name"),
        pytest.param(zipped({"a\udcffb" if os.name == "nt" else "n" * 256: b"x"}), id="too long a name"),
    ],
)
def test_odd_members_are_refused_in_words(tmp_path, content):
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(BadArchive):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    "error", [ValueError, IndexError, OverflowError, RecursionError, OSError, UnicodeError, KeyError]
)
def test_whatever_a_decoder_raises_is_the_archives_fault(tmp_path, monkeypatch, error):
    (tmp_path / "archive").write_bytes(zipped({"x": b"x"}))

    def broken(self, *args, **kwargs):
        raise error("inside")

    monkeypatch.setattr(zipfile.ZipFile, "open", broken)
    with pytest.raises(BadArchive, match="is broken: .*inside"):
        unpack(tmp_path / "archive", tmp_path / "out")


@pytest.mark.parametrize("address", ["http://[::1/x.zip", "http://a..b/x", "http://\n/x", "http://h:99999/"])
def test_addresses_that_are_none_are_refused(site, tmp_path, address):
    with pytest.raises(DownloadFailed):
        download(address, tmp_path / "f", attempts=2, wait=0.0)
    site.redirect["/file"] = address
    with pytest.raises(DownloadFailed):
        download(f"{site.url}/file", tmp_path / "f", attempts=2, wait=0.0)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_has_an_end(site, tmp_path):
    site.files["/file"] = bytes(100_000)
    with pytest.raises(DownloadFailed, match="sends more than 50,000 bytes"):
        download(f"{site.url}/file", tmp_path / "f", most=50_000)
    assert list(tmp_path.iterdir()) == []


def test_a_total_that_shrank_is_another_file(site, tmp_path):
    """Without a checksum nothing else tells: the server cut the file short between two requests."""
    content = bytes(i % 251 for i in range(200_000))
    site.files["/file"], site.cuts = content, [100_000]
    with pytest.raises(DownloadFailed):
        download(f"{site.url}/file", tmp_path / "f", attempts=1)
    site.files["/file"] = content[:100_000]  # with the ETag of before
    found = download(f"{site.url}/file", tmp_path / "f", wait=0.0)
    assert found == sha(content[:100_000]) and site.requests[-1] == ("/file", None)


def test_a_note_with_line_ends_sends_no_header_of_its_own(site, tmp_path):
    site.files["/file"] = b"x" * 1000
    (tmp_path / "f.part").write_bytes(b"x" * 10)
    note = {"url": f"{site.url}/file", "validator": '"one"\r\nX-Evil: 1'}
    (tmp_path / "f.part.json").write_text(json.dumps(note))
    assert download(f"{site.url}/file", tmp_path / "f") == sha(b"x" * 1000)
    assert site.requests == [("/file", None)]


# Bounds


@pytest.mark.parametrize("setting", ["data.train=10**23", f"data.train={10**23}", "data.size=1e9", f"{'a.' * 600}b=1"])
def test_what_would_never_end_is_refused(setting):
    with pytest.raises(RecipeError):
        load_recipe("toy", [setting]).build("data")

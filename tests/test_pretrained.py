"""The index of published models, and their weights: in the package, or downloaded once and checked."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qsattn_plugin
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create
from qsattn_plugin.registry.pretrained import INDEX, Entry, entries, published_model, weights_file
from qsattn_plugin.registry.recipe import load_recipe, shipped_recipes
from qsattn_plugin.storage import load_tensors, save_tensors
from qsattn_plugin.storage.download import DownloadFailed
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from qsattn_plugin.translation.load import fresh, load, published
from qsattn_plugin.translation.publish import publish
from tests.conftest import TINY
from tests.test_cli import qsattn, refused
from tests.web import sha, site

__all__ = ["site"]

CONTENT = bytes(i * 13 % 251 for i in range(100_000))


@pytest.mark.parametrize("entry", entries().values(), ids=list(entries()))
def test_an_entry_is_complete(entry):
    assert entry.summary.endswith(".")
    assert {"recipe", "licence", "data"} <= set(entry.card)
    assert entry.card["recipe"] in shipped_recipes()
    generator = create("generator", entry.generator, **entry.arguments)
    if not entry.has_weights:
        with pytest.raises(UserError, match=r"not published yet; pretrained=False .* `qsattn build"):
            published(entry.name)
        assert published(entry.name, pretrained=False)(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
        return
    assert {"training", "scores"} <= set(entry.card)
    path = weights_file(entry)
    assert path.stat().st_size <= 25e6
    tensors, document = load_tensors(path)
    assert all(t.dtype in (torch.float16, torch.float32) for t in tensors.values())
    assert not any(word.startswith(("/", "~")) for word in re.findall(r'"([^"]*)"', json.dumps(document))), "a path"
    (described,) = document["generators"].values()
    assert described["type"] == entry.generator
    # What the file says of its generator and what the index says build the same network.
    twin = create("generator", described["type"], **described["arguments"])
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in generator.state_dict().items()}
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    assert torch.equal(published(entry.name)(x), qsattn_plugin.load(path)(x))


def test_weights_that_are_not_published_yet_are_said_to_be_missing():
    with pytest.raises(UserError, match=r"weights of later are not published yet; .* `qsattn build slow` trains one"):
        weights_file(Entry("later", "Not yet.", "resnet_4blocks", card={"recipe": "slow"}))


def test_every_file_of_weights_is_in_the_index():
    named = {entry.file for entry in entries().values()} - {None}
    assert {path.name for path in (INDEX.parent / "weights").glob("*.safetensors")} == named


def test_a_published_name_is_a_model_where_no_run_has_that_name(workplace):
    assert qsattn_plugin.load("toy").channels == 3
    (workplace / "toy").mkdir()  # a folder of pictures, say
    assert qsattn_plugin.load("toy").channels == 3
    with pytest.raises(UserError, match="toy is a folder, but not of a run"):
        qsattn_plugin.load("./toy")
    (workplace / "runs" / "toy" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="toy is runs/toy here, and a published model: write runs/toy or pretrained/"):
        qsattn_plugin.load("toy")
    with pytest.raises(UserError, match="runs/toy holds no checkpoint yet"):
        qsattn_plugin.load("runs/toy")
    assert published("toy").channels == qsattn_plugin.load("pretrained/toy").channels == 3
    (workplace / "toy").rmdir()
    (workplace / "toy").touch()
    with pytest.raises(UserError, match=r"write \./toy or pretrained/toy"):
        qsattn_plugin.load("toy")
    with pytest.raises(UserError, match="no run, file or published model 'horse2zebr'; did you mean 'horse2zebra'"):
        qsattn_plugin.load("horse2zebr")
    with pytest.raises(UserError, match="no model 'tory' is published; did you mean 'toy'"):
        published_model("tory")


@pytest.fixture
def remote(site) -> Entry:
    site.files["/w.safetensors"] = CONTENT
    return Entry("far", "Far away.", "resnet_4blocks", sha256=sha(CONTENT), url=f"{site.url}/w.safetensors")


def test_a_download_happens_once_and_is_checked_every_time(site, remote, tmp_path, capsys):
    path = weights_file(remote, folder=tmp_path)
    assert path.read_bytes() == CONTENT and path.parent == tmp_path
    assert "downloading far: 100%" in capsys.readouterr().err
    assert weights_file(remote, folder=tmp_path) == path
    assert len(site.requests) == 1
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="is not the file that was published .* delete it, and it is downloaded again"):
        weights_file(remote, folder=tmp_path)
    path.unlink()
    weights_file(remote, progress=False, folder=tmp_path)
    assert len(site.requests) == 2
    assert capsys.readouterr().err == ""


def test_downloads_go_to_the_hubs_own_cache(site, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    name = f"qsattn_far-{hashlib.sha256(CONTENT).hexdigest()[:8]}.safetensors"
    assert weights_file(remote, progress=False) == tmp_path / "hub" / "checkpoints" / name


def test_what_did_not_arrive_whole_is_never_used(site, remote, tmp_path):
    site.statuses = [404]
    with pytest.raises(DownloadFailed, match=r"weights of far are not on this machine: .*404.* another machine to "):
        weights_file(remote, progress=False, folder=tmp_path)
    with pytest.raises(DownloadFailed, match="has the wrong checksum"):
        weights_file(replace(remote, sha256="0" * 64), progress=False, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_way_by_hand_is_said(tmp_path):
    # A name that no resolver knows (RFC 6761): as without a network.
    entry = Entry("far", "Far away.", "resnet_4blocks", sha256=sha(CONTENT), url="https://weights.invalid/w")
    with pytest.raises(DownloadFailed) as caught:
        weights_file(entry, progress=False, folder=tmp_path)
    expected = tmp_path / f"qsattn_far-{sha(CONTENT)[:8]}.safetensors"
    assert f"Without a network, copy https://weights.invalid/w from another machine to {expected}" in str(caught.value)
    expected.write_bytes(CONTENT)
    assert weights_file(entry, folder=tmp_path) == expected


def test_a_broken_index_is_named(tmp_path: Path):
    (tmp_path / "index.yaml").write_text("toy: {summary: A toy.}")
    with pytest.raises(UserError, match=r"index of published models cannot be read: .*index\.yaml.*generator"):
        entries(tmp_path / "index.yaml")


def test_publishing_a_run_keeps_what_the_generator_does(workplace):
    run = Run.create(load_recipe("toy", (*TINY, "train.steps=1", "train.ema=0.9")), workplace / "run")
    fit(run)
    done = publish(run.folder, workplace / "out" / "w.safetensors")
    assert (
        done.size == (workplace / "out" / "w.safetensors").stat().st_size < run.checkpoints.path(1).stat().st_size / 4
    )
    small, whole = qsattn_plugin.load(workplace / "out" / "w.safetensors"), qsattn_plugin.load(run.folder)
    assert small.document["recipe"] == whole.document["recipe"] and small.document["step"] == 1
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    again = Session(load_recipe("toy", (*TINY, f"train.init_from={workplace / 'out' / 'w.safetensors'}")))
    begun, published = again.method.generator.state_dict(), small.generator.state_dict()
    assert all(torch.equal(begun[key], published[key]) for key in published)
    # Half precision has 11 bits; weights rounded to those move a few layers' output by some thousandths at most.
    assert 0 < (small(x) - whole(x)).abs().max() < 1e-2


def test_publishing_one_of_two_generators_and_replacing_nothing_unasked(workplace):
    forward, backward = (fresh(name, width=2) for name in ("unet_256", "resnet_4blocks"))
    document = {"generators": {}}
    tensors = {}
    for name, kind, model in (("backward", "resnet_4blocks", backward), ("forward", "unet_256", forward)):
        arguments = {"width": 2, "in_channels": 3}
        document["generators"][name] = {"type": kind, "arguments": arguments, "prefix": f"{name}."}
        tensors |= {f"{name}.{key}": value for key, value in model.generator.state_dict().items()}
    save_tensors(Path("both.safetensors"), tensors, document)
    before = Path("both.safetensors").read_bytes()
    for name, expected in ((None, forward), ("backward", backward)):
        publish("both.safetensors", Path("out.safetensors"), name, overwrite=True)
        assert type(load("out.safetensors").generator) is type(expected.generator)
    with pytest.raises(UserError, match="exists already"):
        publish("both.safetensors", Path("out.safetensors"))
    with pytest.raises(UserError, match="is the input itself"):
        publish("both.safetensors", Path("both.safetensors"), overwrite=True)
    assert Path("both.safetensors").read_bytes() == before


def test_the_command_names_the_file_in_a_folder_and_prints_what_the_index_says(workplace):
    done = qsattn("publish", "pretrained/toy", "-o", "out")
    assert done.exit_code == 0, done.output
    content = (workplace / "out" / "model.safetensors").read_bytes()
    lines = done.stdout.splitlines()
    assert lines[:2] == ["file: model.safetensors", f'sha256: "{hashlib.sha256(content).hexdigest()}"']
    assert lines[2] == f"bytes: {len(content):,}"
    assert re.match(r"half precision changes random images by \S+ on average, \S+ at most", lines[3])
    assert "model.safetensors exists already" in refused("publish", "pretrained/toy", "-o", "out")
    assert qsattn("publish", "pretrained/toy", "-o", "out/toy.safetensors", "--overwrite").exit_code == 0
    assert "did you mean 'forward'" in refused("publish", "pretrained/toy", "-o", "x", "--generator", "forwards")

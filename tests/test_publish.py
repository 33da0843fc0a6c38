"""Models for others: the card, the round trip through a model hub, and an index of one's own."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import qsattn_plugin
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.pretrained import entries, weights_file
from qsattn_plugin.storage.hub import hub_file, parse_hub_name
from tests.hub_server import Hub
from tests.test_cli import qsattn, refused, trained

__all__ = ["trained"]

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[1]
X = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of the tests' own, an empty cache, and somebody who is logged in."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    hub.close()


def metadata(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_a_card_says_what_the_run_knows(trained, workplace):
    done = qsattn("publish", trained, "-o", "out", "--licence", "Apache-2.0", "--summary", "Small.")
    assert done.exit_code == 0, done.output
    assert {path.name for path in Path("out").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    card = Path("out/README.md").read_text()
    said = metadata(card)
    assert (said["library_name"], said["pipeline_tag"], said["license"]) == (
        "qsattn-plugin",
        "image-to-image",
        "apache-2.0",
    )
    assert said["datasets"] == ["toy"]
    scores = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in scores if event["event"] == "evaluate"][-1]["scores"]
    (result,) = said["model-index"][0]["results"]
    assert {one["type"]: one["value"] for one in result["metrics"]} == last and set(said["metrics"]) == set(last)
    assert "Small. A generator for unpaired" in card and "| training | steps 4, batch_size 2" in card
    assert "sampler" in yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.S)[1])
    assert str(trained.parent) not in card + Path("out/config.json").read_text()


def test_a_card_of_a_file_alone_leaves_out_what_nobody_knows(workplace):
    document = {
        "generators": {"forward": {"type": "resnet_4blocks", "arguments": {"width": 2, "in_channels": 3}, "prefix": ""}}
    }
    from qsattn_plugin.storage import save_tensors
    from qsattn_plugin.translation.load import fresh

    save_tensors(Path("w.safetensors"), fresh("resnet_4blocks", width=2).generator.state_dict(), document)
    assert qsattn("publish", "w.safetensors", "-o", "out").exit_code == 0
    card = Path("out/README.md").read_text()
    assert not {"license", "datasets", "model-index", "metrics"} & metadata(card).keys()
    assert "None" not in card and "A resnet_4blocks." in card


def test_there_and_back(hub, trained, workplace, monkeypatch):
    done = qsattn("publish", trained, "-o", "out", "--to", "hf:somebody/zebras")
    assert done.exit_code == 0, done.output
    ((commit, files),) = hub.repositories["somebody/zebras"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert b'qsattn_plugin.load("hf:somebody/zebras")' in files["README.md"]
    assert f"{hub.url}/somebody/zebras/resolve/{commit}/model.safetensors" in done.output

    model = qsattn_plugin.load("hf:somebody/zebras")
    mine = qsattn_plugin.load("out")  # the folder as it was published
    assert torch.equal(model(X), mine(X)) and "hf:somebody/zebras" in model.origin

    # A newer one; the old one by its revision.
    qsattn("publish", "pretrained/toy", "-o", "toy", "--to", "hf:somebody/zebras")
    toy = qsattn_plugin.load("pretrained/toy")
    assert torch.equal(qsattn_plugin.load("hf:somebody/zebras")(X), toy(X))
    assert torch.equal(qsattn_plugin.load(f"hf:somebody/zebras@{commit}")(X), mine(X))

    # What was loaded once loads without a network, by every command.
    hub.close()
    toy.translate(__import__("PIL.Image").Image.new("RGB", (40, 30), "tan")).save("photo.png")
    done = qsattn("translate", "photo.png", "-m", f"hf:somebody/zebras@{commit}", "-o", "made", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "cannot be reached" in refused("translate", "photo.png", "-m", "hf:somebody/else", "-o", "made")
    monkeypatch.setenv("HF_ENDPOINT", "http://no.such.host.invalid")
    assert "cannot be reached" in refused("publish", trained, "-o", "again", "--to", "hf:somebody/zebras")
    Path("out/model.safetensors").write_bytes(Path("toy/model.safetensors").read_bytes())
    with pytest.raises(UserError, match="the weights of out are not those that its config.json names"):
        qsattn_plugin.load("out")


def test_changed_weights_are_refused(hub, workplace):
    qsattn("publish", "pretrained/toy", "-o", "out", "--to", "hf:a/b")
    hub.commit("a/b", {"model.safetensors": Path("out/model.safetensors").read_bytes()[:-1] + b"x"})
    with pytest.raises(UserError, match=r"weights of hf:a/b are not those .* delete .*, and they are downloaded again"):
        hub_file("hf:a/b")


@pytest.mark.parametrize(
    ("files", "model", "words"),
    [
        (None, "hf:a/b", "there is no such repository, or it is private; .*`hf auth login`"),
        ({"README.md": b""}, "hf:a/b", "not a model of this package: it has no config.json"),
        ({"config.json": b"{}"}, "hf:a/b", "not a model of this package: it has no config.json and model.safetensors"),
        ({"config.json": b"{}", "model.safetensors": b""}, "hf:a/b", "its config.json names no sha256"),
        ({"config.json": b"{}"}, "hf:a/b@v2", "no such revision"),
    ],
)
def test_what_is_no_model_is_said(hub, files, model, words):
    if files is not None:
        hub.commit("a/b", files)
    with pytest.raises(UserError, match=words):
        hub_file(model)


@pytest.mark.parametrize("name", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:a/ b"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="write hf:OWNER/NAME or hf:OWNER/NAME@REVISION"):
        parse_hub_name(name)


def test_who_is_not_logged_in_is_told(hub, workplace, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "the hub answers 401; log in with `hf auth login`" in refused(
        "publish", "toy", "-o", "out", "--to", "hf:a/b"
    )
    assert not hub.repositories


def test_an_entry_of_ones_own_in_one_command(hub, trained, workplace):
    """A fork's index: the entry is read by the package, and hubconf.py has it, without an edit."""
    fork = workplace / "fork"
    (fork / "registry").mkdir(parents=True)
    for name in ("hubconf.py", "registry/pretrained.yaml"):
        shutil.copy(ROOT / name, fork / name)
    index = fork / "registry" / "pretrained.yaml"
    before = index.read_text()
    done = qsattn(
        "publish", trained, "-o", "out", "--index", index, "--name", "mine", "--licence", "MIT", "--summary", "Mine."
    )
    assert done.exit_code == 0, done.output
    done = qsattn("publish", trained, "-o", "out", "--overwrite", "--to", "hf:a/b", "--index", index, "--name", "far")
    assert done.exit_code == 0, done.output
    assert index.read_text().startswith(before.rstrip())  # its comments stay

    found = entries(index)
    assert list(found)[-2:] == ["mine", "far"]
    assert (found["mine"].file, found["mine"].summary, found["mine"].card["licence"]) == (
        "mine.safetensors",
        "Mine.",
        "MIT",
    )
    copied = fork / "registry" / "weights" / "mine.safetensors"
    assert copied.read_bytes() == Path("out/model.safetensors").read_bytes()
    assert found["mine"].card["training"]["steps"] == 4 and found["mine"].card["scores"]
    hub_entries = runpy.run_path(str(fork / "hubconf.py"))
    assert "Mine." in hub_entries["qsattn_mine"].__doc__ and "qsattn_far" in hub_entries
    # The address is the commit's, so that the file there never changes; it is fetched and checked like any other.
    assert weights_file(found["far"], progress=False, folder=workplace).read_bytes() == copied.read_bytes()

    assert "has a model 'mine' already" in refused("publish", "toy", "-o", "x", "--index", index, "--name", "mine")
    assert "cannot be a model's name" in refused("publish", "toy", "-o", "y", "--index", index, "--name", "my-zebras")
    # The recipe's name is taken: nothing is uploaded before that is said.
    assert "has a model 'toy' already" in refused("publish", trained, "-o", "w", "--to", "hf:a/late", "--index", index)
    assert "a/late" not in hub.repositories
    assert not any(Path(folder).exists() for folder in "xyw")  # nothing is written before an index is asked
    Path("new.yaml").write_text("# models of mine\n")
    done = qsattn("publish", trained, "-o", "z", "--index", "new.yaml")
    assert done.exit_code == 0 and list(entries(Path("new.yaml"))) == ["toy"], done.output
    index.write_text("mine: [")
    assert "yaml" in refused("publish", "toy", "-o", "z", "--index", index, "--name", "other")
    assert index.read_text() == "mine: ["

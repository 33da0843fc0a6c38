"""``qsattn fork``: a fork's own script with its sampler swapped, or watched."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from qsattn_plugin.cli import NEEDED, main
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks import take_over
from qsattn_plugin.forks.check import Check, CheckFinished, guess_sampler
from qsattn_plugin.forks.run import SamplerImportHook, summarise
from qsattn_plugin.forks.swap import Swap
from tests import fork_clients as clients

TRAIN = """
import argparse, os, sys, time
import helper                                   # beside the script, as `python train.py` finds it
from models.networks import PatchSampleF        # the name is taken before any module is made
import torch
parser = argparse.ArgumentParser()
parser.add_argument("--netF", choices=["mlp_sample"], default="mlp_sample")
parser.add_argument("--steps", type=int, default=2)
parser.add_argument("--end")
parser.add_argument("--train", type=int, default=0)
parser.add_argument("--mode", default="")
parser.add_argument("--kind", default="PatchSampleF")
opt = parser.parse_args()
print("cwd", os.path.basename(os.getcwd()), "argv0", sys.argv[0], __name__)
torch.manual_seed(0)
netF = getattr(sys.modules["models.networks"], opt.kind)(use_mlp=True, nc=8)
for step in range(opt.steps):
    feats = [torch.randn(1, 8, 6, 6) for _ in range(2)]
    rows, ids = netF(feats, 16, None)
    netF(feats, 16, ids)
    print("step", step, len(rows[0]), float(torch.rand(())))
    print("(epoch: %d, iters: %d, time: %.3f) G: %.3f NCE: %.3f" % (1, step, 0.1, step / 2, 5 - step))
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
for step in range(opt.train):
    optimizer.step()
    print("trained", step)
if opt.end == "error":
    open("/no/such/file")
if opt.end == "inside":
    netF([torch.randn(1, 5, 6, 6)] * 2, 16, ids)
if opt.end == "import":
    import broken
if opt.end == "exit":
    sys.exit(7)
if opt.end == "wait":
    print("waiting", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Path:
    """A folder laid out like CUT: train.py, models/networks.py."""
    folder = tmp_path_factory.mktemp("forks") / "a_fork"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").touch()
    (folder / "helper.py").touch()
    (folder / "broken.py").write_text("import models.networks\nraise ValueError('in an import')\n")
    (folder / "unused.py").write_text("class PatchSampleX: ...\n")
    (folder / "models" / "networks.py").write_text(Path(clients.__file__).read_text())
    (folder / "train.py").write_text(TRAIN)
    return folder


def start(where: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "qsattn_plugin.cli", "fork", *arguments]
    return subprocess.Popen(
        command,
        cwd=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs the tests in the background may ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def inside(fork, monkeypatch) -> Callable[..., Result]:
    """Run the command in this process, and leave nothing of the fork's in it."""
    monkeypatch.chdir(fork)
    monkeypatch.setattr(sys, "path", ["the program's folder", *sys.path])
    monkeypatch.setattr(sys, "argv", sys.argv)

    def forget() -> None:
        for name in ("helper", "broken", "models", "models.networks", "models.more"):
            sys.modules.pop(name, None)

    def invoke(*arguments: str) -> Result:
        forget()
        return CliRunner().invoke(main, ["fork", *arguments])

    yield invoke
    forget()


def test_a_script_runs_where_it_is_started_with_its_class_swapped(fork, tmp_path):
    script = str(fork / "train.py")
    (tmp_path / "elsewhere").mkdir()
    process = start(tmp_path / "elsewhere", "-s", "queries=16", "--", script, "--steps", "3", "--end", "error")
    out, err = process.communicate(timeout=120)
    assert re.search(r"^cwd elsewhere argv0 \S*train.py __main__$", out, re.M) and out.count("step") == 3
    assert "qsattn: models.networks.PatchSampleF samples by qsattn_global from here on" in err
    # The fork's own errors come out as Python shows them, without a frame of ours.
    trace = err[err.index("Traceback") :].splitlines()
    assert process.returncode == 1 and trace[-1].startswith("FileNotFoundError: ")
    assert trace[1].startswith(f'  File "{script}", line ') and "qsattn_plugin" not in err
    account = "qsattn: qsattn_global chose positions 3 times on maps of 6 x 6, 6 x 6, and was given them 3 times"
    assert account in err[: err.index("Traceback")]  # what was done is said all the same


@pytest.mark.parametrize("options", [(), ("--module", "models.networks"), ("--class", "PatchSampleF")])
def test_a_script_may_lie_below_the_folder_that_it_works_in(inside, options):
    (Path("scripts")).mkdir(exist_ok=True)
    Path("scripts", "run.py").write_text(
        "import os, sys\nsys.path.insert(0, os.getcwd())\nexec(open('train.py').read())\n"
    )
    Path(".#scratch.py").unlink(missing_ok=True)
    Path(".#scratch.py").symlink_to("somebody@somewhere.123")  # what an editor leaves
    result = inside(*options, "--", "scripts/run.py")
    assert result.exit_code == 0 and "models.networks.PatchSampleF samples by qsattn_global" in result.stderr


@pytest.mark.parametrize(("end", "last"), [("inside", "RuntimeError: "), ("import", "ValueError: in an import")])
def test_errors_that_pass_through_our_frames_are_shown_without_them(inside, end, last, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: shown.append("".join(traceback.format_exception(*error))))
    # Without a swap an error of the class's own passes through the wrapper alone.
    result = inside("--check", "--steps", "9", "--", "train.py", "--end", end)
    assert result.exit_code == 1 and len(shown) == 1
    assert shown[0].splitlines()[-1].startswith(last) and 'train.py", line' in shown[0]
    assert all(word not in shown[0] for word in ("qsattn_plugin", "runpy", "importlib"))


def test_a_ctrl_c_is_a_ctrl_c(fork):
    process = start(fork, "--", "train.py", "--end", "wait")
    while "waiting" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)  # into the sleep
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and err.rstrip().endswith("KeyboardInterrupt")


def test_a_script_that_ends_is_accounted_for(inside):
    result = inside("--sampler", "random", "--", "train.py")
    assert result.exit_code == 0
    assert "qsattn: random chose positions 2 times on maps of 6 x 6, 6 x 6, and was given them 2 times" in result.stderr


def test_the_forks_own_exit_code_is_kept(inside):
    assert inside("train.py", "--end", "exit").exit_code == 7  # without the two dashes, too


def test_help_of_the_script_is_no_failure(inside):
    result = inside("--", "train.py", "--help")
    assert result.exit_code == 0 and "--netF {mlp_sample}" in result.output


def test_of_several_classes_the_one_that_is_called_is_named(inside, fork):
    result = inside("--", "train.py")
    assert result.stderr.count("samples by") == 1  # the file defines PatchSampleF, and is imported under two names
    more = "\n".join(f"class PatchSample{letter}(PatchSampleF): ..." for letter in "GH")
    (fork / "models" / "more.py").write_text(f"from models.networks import PatchSampleF\n{more}\n")
    (fork / "helper.py").write_text("import models.more\n")
    try:
        result = inside("--", "train.py")
    finally:
        (fork / "helper.py").write_text("")
    assert result.exit_code == 0 and re.findall(r"(\S+) samples by", result.stderr) == ["models.networks.PatchSampleF"]


def test_what_the_sampler_sees_is_logged_beside_the_losses_and_drawn(inside, tmp_path):
    log = tmp_path / "sampler.jsonl"
    result = inside("-s", "taps=[1]", "--log", str(log), "--report", "--", "train.py", "--steps", "32", "--end", "exit")
    assert result.exit_code == 7  # the script's own end loses nothing
    start, first, *more = map(json.loads, log.read_text().splitlines())
    assert start["sampler"] == "qsattn_global" and start["arguments"] == {"taps": [1]}
    assert first["step"] == 1 and first["losses"] == {}
    assert [(line["step"], line["losses"]) for line in more] == [
        (n, {"G": (n - 2) / 2, "NCE": 5 - (n - 2)})
        for n in (11, 21, 31)  # printed before the call that is logged
    ]
    for line in (first, *more):
        assert line["tap_0/milliseconds"] > 0 and line["tap_1/megabytes"] > 0
        assert 0 <= line["tap_1/entropy_q00"] <= line["tap_1/entropy_q50"] <= line["tap_1/entropy_q100"] <= math.log(36)
        assert "tap_0/entropy_q00" not in line and 0 < line["tap_1/largest_probability"] <= 1
    page = tmp_path / "sampler.html"
    assert f"qsattn: {page} draws sampler.jsonl" in result.stderr
    text = page.read_text()
    page.unlink()
    assert CliRunner().invoke(main, ["report", str(log)]).output == f"{page}\n" and page.exists()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert data["train"]["series"]["NCE"] == [None, -4.0, -14.0, -24.0]
    assert {chart["title"] for chart in data["charts"]} >= {"Time", "Memory", "Entropy of all rows at tap 1"}
    for section in {chart["section"] for chart in data["charts"]}:
        assert f'<section id="{section}"' in text


def test_a_log_changes_nothing_in_the_training(inside, tmp_path):
    def steps(*arguments):
        return [
            line for line in inside(*arguments, "--", "train.py", "--steps", "12").stdout.splitlines() if "step" in line
        ]

    assert steps("--log", str(tmp_path / "sampler.jsonl")) == steps()


def test_a_sampler_that_was_never_called_fails_the_run(inside):
    result = inside("--", "train.py", "--steps", "0")
    assert result.exit_code == 1 and "cwd" in result.stdout
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        "Error: the fork's sampler was not swapped: models.networks.PatchSampleF was taken over, but "
    )
    assert "If another class samples, name it with --module and --class" in last


def test_a_class_that_is_never_called_is_said_when_the_training_has_begun(inside):
    result = inside("--", "train.py", "--steps", "0", "--train", "50")
    assert result.exit_code == 1 and "trained 49" in result.stdout
    assert "models.networks.PatchSampleF was not called in the first 20 steps" in result.stderr
    assert "not called" not in inside("--", "train.py", "--steps", "1", "--train", "50").stderr


def test_a_training_without_a_swapped_class_ends_in_its_first_steps(inside):
    result = inside("--class", "PatchSampleX", "--", "train.py", "--train", "50")  # of a file that nobody imports
    assert result.exit_code == 1 and "trained 18" in result.stdout and "trained 20" not in result.stdout
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: the fork's sampler was not swapped: no class PatchSampleX of ") and "EagerF" in last
    assert inside("--", "train.py", "--train", "50").exit_code == 0


def test_what_goes_wrong_inside_the_fork_by_our_doing_is_one_line(inside):
    result = inside("-s", "queries=5", "--", "train.py")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: the fork asks for 16 positions (its --num_patches) and ")


def test_check_leaves_the_fork_as_it_is_and_prints_a_table(inside):
    result = inside("--check", "--steps", "2", "--", "train.py")
    assert result.exit_code == 0 and "models.networks.PatchSampleF is watched" in result.stderr
    table = result.stdout
    assert re.search(r"^0 +8 x 6 x 6 +random +- +-$", table, re.M) and re.search(r"time +[\d.]+ ms +[\d.]+ ms", table)
    torch.manual_seed(0)
    clients.PatchSampleF(use_mlp=True, nc=8)([torch.randn(1, 8, 6, 6) for _ in range(2)], 16, None)
    assert f"step 0 16 {float(torch.rand(()))}" in table  # the script's own random numbers, after the first look


def test_a_check_of_a_script_that_ends_too_early_says_so(inside):
    result = inside("--check", "--steps", "9", "--", "train.py")
    assert result.exit_code == 0 and "the script ended after 2 of 9 calls of its sampler" in result.stderr
    assert re.search(r"^0 +8 x 6 x 6 +random", result.stdout, re.M)  # what was seen is not lost


def test_a_check_whose_class_is_never_called_says_that_it_is_not(inside):
    result = inside("--check", "--", "train.py", "--steps", "0")
    assert result.exit_code == 1 and "models.networks.PatchSampleF was taken over, but never called" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sampler", "qsattn_globl", "--", "train.py"],
            "there is no sampler 'qsattn_globl'; did you mean 'qsattn_global'",
        ),
        (["-s", "querie=3", "--", "train.py"], "-s querie=3: sampler.querie: there is no such key; did you mean"),
        (["-s", "scale=big", "--", "train.py"], "-s scale=big: sampler.scale: must be a number, got"),
        (["-s", "scale", "--", "train.py"], "expected key=value"),
        (["-s", "queries=0", "--", "train.py"], "queries: must be at least 1, got 0"),
        (["--", "trian.py"], "there is no script trian.py; did you mean 'train.py'?"),
        (["--module", "models.network", "--", "train.py"], "did you mean 'models.networks'?"),
        (["--module", "networks", "--", "train.py"], "did you mean 'models.networks'?"),
        (["--class", "PatchSampelF", "--", "train.py"], "did you mean 'PatchSampleF'?"),
        (["--report", "--", "train.py"], "name its file, --log sampler.jsonl"),
        (["--check", "--log", "x", "--", "train.py"], "leave --check or --log out"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_runs(inside, arguments, message):
    result = inside(*arguments)
    assert result.exit_code == 1
    assert message in result.output and "cwd" not in result.output and result.output.count("\n") == 1


def hook(folder: Path, **settings) -> SamplerImportHook:
    return SamplerImportHook(Swap(), folder, tell=lambda name: None, **settings)


def module_of(name: str, **contents) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, value in contents.items():
        value.__module__ = name
        setattr(module, key, value)
    return module


def sampler(name: str, **more) -> type:
    """A class called as CUT's sampler is, of another name."""

    def forward(self, feats, num_patches=64, patch_ids=None):
        return [], []

    return type(name, (nn.Module,), {"forward": forward, "create_mlp": lambda self, feats: None, **more})


def test_classes_are_found_by_name_and_by_how_they_are_called(tmp_path):
    flow = type("PatchSampleFlow", (nn.Module,), {"forward": lambda self, feats, num_patches=1, patch_ids=None: None})
    other = type("PatchSampleF2", (nn.Module,), {"forward": lambda self, size, feats, num_patches, patch_ids: None})
    found = hook(tmp_path)
    found.take_over_classes(
        module_of("nets", PatchSampleF=sampler("PatchSampleF"), Heads=sampler("Heads"), PatchSampleFlow=flow, Two=other)
    )
    assert found.taken_over == ["nets.PatchSampleF"] and found.others == ["nets.Heads"]
    (tmp_path / "nets.py").write_text("class Heads: ...")
    named = hook(tmp_path, kind="Heads")
    named.take_over_classes(module_of("nets", PatchSampleF=sampler("PatchSampleF"), Heads=sampler("Heads")))
    assert named.taken_over == ["nets.Heads"]


def test_a_class_that_is_not_there_or_is_no_sampler_is_said(tmp_path):
    (tmp_path / "nets.py").write_text("class PatchSampleF: ...\nclass Net: ...\n")
    wrong = hook(tmp_path, module="nets", kind="PatchSampleG")
    with pytest.raises(UserError, match="module nets has no class 'PatchSampleG'; did you mean 'PatchSampleF'"):
        wrong.take_over_classes(module_of("nets", PatchSampleF=sampler("PatchSampleF")))
    with pytest.raises(UserError, match="Net is not called as CUT's sampler is: its forward takes"):
        hook(tmp_path, kind="Net").take_over_classes(
            module_of("nets", Net=type("Net", (nn.Module,), {"forward": lambda self, x: x}))
        )
    with pytest.raises(UserError, match="no file in .* has a class 'PatchSampelF'; did you mean 'PatchSampleF'"):
        hook(tmp_path, kind="PatchSampelF")
    never = hook(tmp_path)
    never.take_over_classes(module_of("nets", Heads=sampler("Heads")))
    with pytest.raises(UserError, match=r"no class PatchSample... of .* was imported; also called .*: nets.Heads"):
        summarise(never.instead, never)


def test_modules_outside_the_forks_folder_are_left_alone(tmp_path):
    found = hook(tmp_path)
    inside = tmp_path / "models" / "networks.py"
    assert found._wanted("models.networks", str(inside))
    assert not found._wanted("torch.nn", torch.nn.__file__)
    assert not found._wanted("x", str(tmp_path / ".venv" / "lib" / "site-packages" / "x.py"))
    assert not found._wanted("sys", "built-in") and not found._wanted("namespace", None)


def watched(module: nn.Module, maps: list[torch.Tensor], check: Check) -> Check:
    """Have a sampler watched until the check has seen enough."""
    take_over(module, check)
    for _ in range(check.steps - 1):
        module(maps, 64, None)
    with pytest.raises(CheckFinished):
        module(maps, 64, None)
    return check


def test_a_check_tells_a_wrong_selection_from_a_right_one():
    # Features this large saturate the softmax: most entropies round to 0 when they are taken in float32 step by step.
    maps = [4.0 * torch.randn(1, 32, 24, 24, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    naive = watched(clients.QueryF(), maps, Check(Swap(), steps=1))
    assert [naive.layers[i]["how"] for i in (0, 1)] == ["random", "attention"]
    assert naive.layers[1]["own"][0] < 0.5 and naive.layers[1]["ours"][0] > 0.99
    assert all(time > 0 and memory > 0 for costs in naive.costs.values() for time, memory in costs)

    mild = watched(clients.QueryF(), [0.05 * m for m in maps], Check(Swap(), steps=1))
    assert mild.layers[1]["own"][0] > 0.95  # where nothing saturates, what one writes down is right
    row = mild.table().splitlines()[3].split()
    assert row[:6] == ["1", "32", "x", "24", "x", "24"] and row[6] == "attention"


def test_a_check_understands_samplers_that_tell_their_positions():
    class Strongest(clients.PatchSampleF):
        def draw(self, feat, num_patches):
            return feat.flatten(2).norm(dim=1)[0].sort(descending=True).indices[:num_patches]

    maps = [torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(1))]
    check = watched(Strongest(), maps, Check(Swap("qsattn_global", significance="norm"), steps=2))
    assert check.layers[0]["how"] == "positions" and check.layers[0]["own"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "head"),
    [
        ((), "compared with qsattn_global (the default; name another one with --sampler)"),
        (("--sampler", "qsattn_local"), "compared with qsattn_local"),
    ],
)
def test_a_check_says_what_it_compares_with(inside, arguments, head):
    assert f"\n{head}\n" in inside("--check", *arguments, "--", "train.py").stdout
    if not arguments:
        guessed = inside("--check", "--", "train.py", "--mode", "local_global")
        assert "\ncompared with qsattn_local_global (guessed from local_global)\n" in guessed.stdout
        # A path or a name that holds such a word is no mode.
        folder = inside("--check", "--", "train.py", "--mode", "/usr/local/data")
        assert f"\n{head}\n" in folder.stdout


@pytest.mark.parametrize(
    ("words", "sampler"),
    [
        (["--name", "x", "local"], "qsattn_local"),
        (["models.networks_local_global"], "qsattn_local_global"),
        (["LocalGlobal"], "qsattn_local_global"),
        (["PatchSampleF", "networks_global"], "qsattn_global"),
        (["mlp_sample", "locale", "globals"], None),
    ],
)
def test_the_mode_of_a_forks_qs_attn_is_guessed_from_words(words, sampler):
    assert (guess_sampler(words) or (None,))[0] == sampler


def test_a_check_shows_work_of_the_classs_own_and_what_is_trained(inside):
    maps = [torch.randn(1, 8, 10, 10), torch.randn(1, 12, 6, 6)]
    plain = watched(clients.PatchSampleF(), maps, Check(Swap(), steps=1)).table()
    assert re.search(r"parameters with a gradient +8 of 8 +8 of 8$", plain, re.M)
    assert re.search(r"rows at the same positions +equal$", plain, re.M) and "--inside" not in plain
    own = watched(clients.ShuffledF(), maps, Check(Swap(), steps=1)).table()
    assert re.search(r"parameters with a gradient +8 of 8 +0 of 8$", own, re.M)
    assert "others, see below" in own and own.endswith("The class does work of its own: swap with --inside.")
    kept = watched(clients.ShuffledF(), maps, Check(Swap(inside=True), steps=1))
    assert kept.costs["ours"] and kept.costs["ours"][0][0] > 0


def test_a_class_that_does_work_of_its_own_is_swapped_by_an_option(inside):
    own = ("--class", "PlacedF"), ("--", "train.py", "--kind", "PlacedF")
    stopped, done = inside(*own[0], *own[1]), inside(*own[0], "--inside", *own[1])
    assert stopped.exit_code == 1 and "PlacedF does work of its own" in stopped.stderr.splitlines()[-1]
    assert done.exit_code == 0 and "chose positions 2 times on maps of 6 x 6, 6 x 6" in done.stderr


def test_help_of_the_command_needs_no_torch():
    program = (
        "import sys; from qsattn_plugin.cli import main\n"
        "try: main(['fork', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr


def test_a_fork_s_environment_needs_three_small_packages_and_more_for_the_report_alone(fork):
    program = "import sys; sys.modules.update(dict.fromkeys({}))\nfrom qsattn_plugin.cli import main; main()"
    program = program.format(sorted(set(NEEDED) - {"torch", "numpy", "yaml", "pydantic"}))

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, "fork", *arguments]
        return subprocess.run(command, cwd=fork, capture_output=True, text=True)

    warned = run("--log", "some.jsonl", "--", "train.py", "--steps", "0", "--train", "30")
    assert "trained 29" in warned.stdout and "Warning: models.networks.PatchSampleF was not called" in warned.stderr
    assert run("--", "train.py").returncode == 0
    drawn = run("--log", "some.jsonl", "--report", "--", "train.py")
    assert drawn.returncode == 1 and not drawn.stdout
    assert re.fullmatch(r"Error: this needs (\w+), which is not installed: `pip install (\w+)`\n", drawn.stderr)

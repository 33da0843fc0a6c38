"""What may end a training from outside: signals, kills, a full disk, a second process. None of them loses the run."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak import outcome
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.storage import WriteFailed, load_tensors, read_document, replacing
from qsattn_plugin.storage.checkpoints import Checkpoints
from qsattn_plugin.training.evaluate import Evaluator
from qsattn_plugin.training.interrupts import Interrupted, StopSignal
from qsattn_plugin.training.loop import TrainingEvent, fit
from qsattn_plugin.training.report.history import read_history
from qsattn_plugin.training.run import Run
from qsattn_plugin.translation.load import find_weights
from tests.test_fit import build, events, last_checkpoint

ROOT = Path(__file__).parents[1]
FIT = [sys.executable, "-m", "qsattn_plugin.cli", "fit"]


@pytest.fixture(autouse=True)
def usual_handlers():
    """Signals as a process at a terminal has them, whatever this one was started with; the same again afterwards."""
    numbers, usual = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), [signal.default_int_handler, *[signal.SIG_DFL] * 2]
    before = [signal.signal(n, h) for n, h in zip(numbers, usual, strict=True)]
    yield
    after = [signal.signal(n, h) for n, h in zip(numbers, before, strict=True)]
    assert after == usual, "a handler was left behind"


def test_a_checkpoint_is_never_older_than_the_recipe_allows(workplace):
    run = build(workplace / "run", "checkpoint={every: 1000, minutes: 1e-9, keep: 9}")
    fit(run, max_steps=3)
    assert run.checkpoints.steps() == [1, 2, 3]
    run = build(workplace / "other", "checkpoint={every: 1000, minutes: 60, keep: 9}")
    fit(run, max_steps=3)
    assert run.checkpoints.steps() == [3]


def raising(number: int, at: int, times: int = 1):
    """A report for `fit` that sends this process a signal at a step."""

    def report(progress: TrainingEvent) -> None:
        if (progress.kind, progress.step) == ("step", at):
            for _ in range(times):
                signal.raise_signal(number)

    return report


@pytest.mark.parametrize(
    ("number", "code", "at"),  # between evaluations, at one, at the last step
    [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2), (signal.SIGHUP, 129, 2), (signal.SIGTERM, 143, 4)],
)
def test_a_signal_lets_the_step_end_and_saves(workplace, number, code, at):
    whole, run = build(workplace / "whole"), build(workplace / "run")
    fit(whole)
    with pytest.raises(Interrupted, match=rf"step {at} of 4 is saved; `qsattn fit .*run` carries on") as stop:
        fit(run, on_event=raising(number, at))
    assert stop.value.exit_code == code
    assert run.checkpoints.steps()[-1] == at
    end = events(run, "end")[-1]
    assert (end["step"], end["finished"], end["signal"]) == (at, False, number.name)
    fit(run)
    assert outcome(run) == outcome(whole)


def test_a_signal_ends_an_evaluation_which_is_made_good_later(workplace, monkeypatch):
    run = build(workplace / "run", "data.test=9")  # two batches

    def interrupted(self, generator, stop):
        signal.raise_signal(signal.SIGTERM)
        return original(self, generator, stop)

    original = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    with pytest.raises(Interrupted):
        fit(run)
    assert run.checkpoints.steps() == [2]
    assert events(run, "evaluate") == []
    monkeypatch.undo()
    fit(run)
    assert [e["step"] for e in events(run, "evaluate")] == [2, 4]


def test_a_second_interrupt_ends_at_once(workplace):
    run = build(workplace / "run")
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(run, on_event=raising(signal.SIGINT, 3, times=2))
    assert caught.type is KeyboardInterrupt
    assert run.checkpoints.steps() == [2]  # nothing more was saved, and what was is whole
    fit(run)
    assert run.checkpoints.steps() == [2, 4]


def test_signals_stay_ignored_where_they_were_and_alone_in_other_threads():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignal() as stop_signal:
        signal.raise_signal(signal.SIGINT)
        assert not stop_signal
        signal.raise_signal(signal.SIGTERM)
        assert stop_signal.signal is signal.SIGTERM
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def look():
        with StopSignal() as stop_signal:
            seen.append((bool(stop_signal), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(False, signal.SIG_DFL)]


def started(run: Run) -> subprocess.Popen:
    """A process of its own that trains ``run``; returns when it has saved something new."""
    before = run.checkpoints.steps()[-1:]
    process = subprocess.Popen([*FIT, str(run.folder)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 120
    while run.checkpoints.steps()[-1:] == before:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_from_the_command_line(workplace):
    """One run's life in processes of its own: a second one refused, a kill, SIGTERM, and what the shell is told."""
    run = build(workplace / "run", "train.steps=100000", "checkpoint={every: 1, keep: 2}", "evaluate.every=100000")
    first = started(run)
    second = subprocess.run([*FIT, str(run.folder)], capture_output=True, text=True, cwd=ROOT)
    assert second.returncode == 1
    assert "another process is training" in second.stderr
    assert first.poll() is None
    first.kill()
    first.communicate()
    third = started(run)
    third.send_signal(signal.SIGTERM)
    _, text = third.communicate(timeout=60)
    assert third.returncode == 143, text
    assert "carrying on at step" in text
    step = run.checkpoints.steps()[-1]
    assert f"SIGTERM stopped the training; step {step} of 100000 is saved; `qsattn fit {run.folder}` carries on" in text
    assert [e["step"] for e in events(run, "train")] == list(range(1, step + 1))


def test_a_kill_between_writing_a_checkpoint_and_deleting_the_oldest(workplace, monkeypatch):
    run = build(workplace / "run", "checkpoint={every: 1, keep: 2}")

    class Killed(BaseException):
        pass

    def killed(self, step):
        if step == 4:
            raise Killed

    monkeypatch.setattr(Checkpoints, "prune", killed)
    with pytest.raises(Killed):
        fit(run)
    monkeypatch.undo()
    assert run.checkpoints.steps() == [1, 2, 3, 4]
    fit(run)
    assert run.checkpoints.steps() == [3, 4]
    assert [e["step"] for e in events(run, "evaluate")] == [2, 4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes(workplace, monkeypatch, number, code):
    from click.testing import CliRunner

    from qsattn_plugin.cli import main, progress

    run = build(workplace / "run")
    monkeypatch.setattr(progress.TrainingDisplay, "_step", staticmethod(raising(number, 2)))
    done = CliRunner().invoke(main, ["fit", str(run.folder)])
    assert done.exit_code == code, done.output
    assert "step 2 of 4 is saved" in done.output


def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(tmp_path):
    """A short soak: what `make soak` does a hundred times."""
    command = [sys.executable, "-m", "benchmarks.soak", "--kills", "6", "--steps", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kills" in done.stdout


def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_checkpoint(workplace):
    whole, run = build(workplace / "whole"), build(workplace / "run")
    fit(whole)
    fit(run, max_steps=2)
    size = run.checkpoints.path(2).stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))\n"
    program = limit + "from qsattn_plugin.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "fit", str(run.folder)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not write" in done.stderr
    assert "File too large" in done.stderr
    assert f"step 2 of 4 is saved; `qsattn fit {run.folder}` carries on from there" in done.stderr
    assert run.checkpoints.steps() == [2]
    assert not list(run.checkpoints.folder.glob(".*"))
    fit(run)
    assert last_checkpoint(run) == last_checkpoint(whole)


def test_a_pipe_is_not_replaced_by_a_file(workplace):
    os.mkfifo("pipe")
    with pytest.raises(WriteFailed, match="could not write pipe: it is a device or a pipe"), replacing(Path("pipe")):
        pass
    assert Path("pipe").is_fifo() and [path.name for path in workplace.iterdir()] == ["pipe"]


def test_a_log_that_cannot_be_written_is_said_so(workplace):
    run = build(workplace / "run")
    (run.folder / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"could not write .*metrics\.jsonl: Is a directory"):
        run.log("train", step=1)


def test_the_best_weights_follow_the_first_score(workplace, monkeypatch):
    run = build(workplace / "run", "train.steps=5", "evaluate.every=1", "checkpoint={every: 5, keep: 1}")
    scores = iter([3.0, 1.0, 2.0, 1.0, float("nan")])
    from qsattn_plugin.data.toy import ToyHorses

    monkeypatch.setattr(ToyHorses, "score", lambda *_: {"first": next(scores), "second": 0.0})
    fit(run)
    assert run.checkpoints.steps() == [5]
    document = read_document(run.checkpoints.best)
    pictures = document["best"].pop("scored_on")
    assert document["best"] == {"score": "first", "value": 1.0, "step": 2, "evaluations": 2}
    assert document["step"] == 2
    found = [e["best"] for e in events(run, "evaluate")]
    assert {b["scored_on"] for b in found} == {pictures}
    assert [(b["value"], b["step"], b["evaluations"]) for b in found] == [
        (3.0, 1, 1),
        (1.0, 2, 2),
        (1.0, 2, 3),
        (1.0, 2, 4),
        (1.0, 2, 5),
    ]
    assert find_weights(f"{run.folder}@best").path == run.checkpoints.best
    assert find_weights(run.folder).path == run.checkpoints.path(5)
    best, newest = (load_tensors(p, "model/")[0] for p in (run.checkpoints.best, run.checkpoints.path(5)))
    assert best.keys() == newest.keys()
    assert any(not best[k].equal(newest[k]) for k in best)


def test_the_best_weights_of_a_training_that_was_given_up_are_replaced(workplace, monkeypatch):
    run = build(workplace / "run", "evaluate.every=1", "checkpoint={every: 1, keep: 9}")
    scores = iter([3.0, 2.0, 1.0, 4.0, 2.5, 2.8])
    monkeypatch.setattr("qsattn_plugin.data.toy.ToyHorses.score", lambda *_: {"first": next(scores)})
    fit(run)
    assert run.checkpoints.best_of()["step"] == 3
    for step in (3, 4):
        run.checkpoints.path(step).unlink()
    fit(run)
    # Of step 2, which scored 2.0, there are no weights any more.
    best = run.checkpoints.best_of()
    assert (best["value"], best["step"], best["evaluations"]) == (2.5, 3, 1)
    assert run.last("evaluate")["best"]["evaluations"] == 2
    history = read_history(run.log_file)
    assert history.best is not None and (history.best.step, history.picked_from) == (3, 2)


@pytest.mark.parametrize("change", [None, "train.seed=1", "evaluate.images=1", "data.test=5"])
def test_best_weights_that_were_scored_on_other_pictures_do_not_count(workplace, monkeypatch, change):
    run = build(workplace / "run", "train.steps=2")
    scores = iter([1.0, 2.0])
    monkeypatch.setattr("qsattn_plugin.data.toy.ToyHorses.score", lambda *_: {"first": next(scores)})
    fit(run)
    goes_on = load_recipe(run.folder / "recipe.yaml", ("train.steps=3", *([change] if change else [])))
    fit(Run(run.folder, goes_on))
    other = change not in (None, "train.seed=1")
    assert (run.checkpoints.best_of()["step"], run.checkpoints.best_of()["evaluations"]) == (
        (3, 1) if other else (2, 1)
    )
    said = [note for event in events(run, "start") for note in event["notes"] if "other pictures are scored" in note]
    assert len(said) == other


def test_best_weights_count_as_a_training_and_go_with_it(workplace):
    run = build(workplace / "run", "checkpoint.every=4")
    fit(run, max_steps=2)
    for step in run.checkpoints.steps():
        run.checkpoints.path(step).unlink()
    with pytest.raises(UserError, match=r"holds best\.safetensors"):
        build(workplace / "run")
    Run.create(run.recipe, run.folder, overwrite=True)
    assert not run.checkpoints.best.exists()
    with pytest.raises(UserError, match="has no best weights"):
        find_weights(f"{run.folder}@best")
    assert run.checkpoints.best_of() == {}


@pytest.mark.parametrize("change", ["moved", "deleted", "replaced"])
def test_a_folder_that_goes_away_ends_the_training_with_a_checkpoint_in_a_place_that_is_said(workplace, change):
    whole, run = build(workplace / "whole"), build(workplace / "run")
    fit(whole)
    place = {"moved": workplace / "elsewhere"}.get(change, workplace / "run-2")

    def meddle(progress: TrainingEvent) -> None:
        if (progress.kind, progress.step) == ("step", 3):
            run.folder.rename(workplace / "elsewhere")
            if change != "moved":
                shutil.rmtree(workplace / "elsewhere")
            if change == "replaced":
                build(workplace / "run")

    with pytest.raises(UserError, match="was moved or deleted; step 3 of 4 is saved; `qsattn") as stop:
        fit(run, on_event=meddle)
    assert f"`qsattn fit {place}`" in str(stop.value)
    assert run.folder.exists() == (change == "replaced") and not list(run.folder.glob("checkpoints/*"))
    found = Run.open(place)
    fit(found)
    assert last_checkpoint(found) == last_checkpoint(whole)


def test_a_folder_that_goes_away_while_weights_are_written_loses_no_step(workplace, monkeypatch):
    run = build(workplace / "run", "evaluate.every=3", "checkpoint.every=4")
    write = replacing

    @contextlib.contextmanager
    def moved(path: Path) -> Iterator[Path]:
        with write(path) as temporary:
            yield temporary
            if path.name == "best.safetensors":
                run.folder.rename(workplace / "elsewhere")

    monkeypatch.setattr("qsattn_plugin.storage.replacing", moved)
    with pytest.raises(UserError, match="was moved or deleted; step 3 of 4 is saved"):
        fit(run)
    assert Run.open(workplace / "elsewhere").checkpoints.steps() == [3]


def test_without_its_lock_file_a_run_is_still_locked(workplace):
    run = build(workplace / "run")
    with run.lock():
        (run.folder / ".lock").unlink()
        with pytest.raises(UserError, match="another process is training"), Run.open(run.folder).lock():
            pass


@pytest.mark.parametrize("lost", ["end", "report", "both", "evaluation"])
def test_what_a_finished_run_lacks_is_made_good(workplace, lost):
    run = build(workplace / "run")
    fit(run)
    whole, report = outcome(run), run.report.read_text()
    lines = run.log_file.read_text().splitlines()
    if lost in ("both", "end", "evaluation"):
        lines = [line for line in lines if json.loads(line)["event"] != "end"]
    if lost == "evaluation":
        lines[-1] = lines[-1].replace('"scores"', '"sores"')  # the last one, damaged
    (run.folder / ".report.html.abc.part").write_text("half")
    run.log_file.write_text("\n".join([*lines, '{"event": "train", "step": "x"}', "[" * 9999, ""]))
    if lost in ("both", "report"):
        run.report.unlink()
    fit(Run.open(run.folder))
    assert outcome(run) == whole
    assert run.report.read_text().count("<svg") == report.count("<svg")
    assert run.last("end")["finished"] and run.last("end")["step"] == 4
    assert not list(run.folder.rglob(".*.part"))
    before = run.report.stat().st_mtime_ns
    fit(Run.open(run.folder))
    assert run.report.stat().st_mtime_ns == before  # once


def test_a_closed_terminal_saves_and_ends(workplace):
    run = build(workplace / "run", "train.steps=100000", "checkpoint={every: 1, keep: 2}", "evaluate.every=100000")
    child, terminal = pty.fork()
    if not child:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(FIT[0], [*FIT, str(run.folder)])
    deadline = time.monotonic() + 120
    while not run.checkpoints.steps():
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)  # the kernel sends SIGHUP, and what is printed from now on is an error
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert run.last("end")["signal"] == "SIGHUP" and run.last("end")["step"] == run.checkpoints.steps()[-1]


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGHUP])
def test_a_pipe_that_nobody_reads_any_more_ends_no_training(workplace, number):
    """As `qsattn fit 2>&1 | tee log`: Ctrl-C ends tee, too; or `| head`, which ends by itself."""
    steps = 40 if number is None else 100000
    run = build(workplace / "run", f"train.steps={steps}", "train.log_every=1", "checkpoint.every=100000")
    process = subprocess.Popen(
        [*FIT, str(run.folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while b"step 2/" not in (line := process.stderr.readline()):
        assert line  # it has not ended
    process.stderr.close()
    if number is not None:
        process.send_signal(number)
    assert process.wait(timeout=120) == (0 if number is None else 128 + number)
    end = run.last("end")
    assert end["step"] == run.checkpoints.steps()[-1] and end["finished"] == (number is None)

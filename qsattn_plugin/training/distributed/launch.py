"""Several processes on this machine for one training: start them, let them end together, say which one failed.

A small relative of ``torchrun`` for one machine. It differs where a training must not be lost: a signal reaches every
process once, and then they have all the time they need to save; when the launcher is killed, they save and end, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import IO

import torch.distributed as dist

__all__ = ["PEER_FAILED", "follow_launcher", "is_launched", "launch"]

#: Exit code of a process that ended because of another one.
PEER_FAILED = 113
#: Seconds for the others to notice that one has failed, which they do at the next thing that they do together.
GRACE = 20.0
_TIE = "QSATTN_LAUNCHER"
_LONGEST = 20_000


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command as several processes that train together, and return the exit code of the whole.

    The first process has this one's terminal. What the others say is shown where one of them fails; the rest is then
    given a moment to notice, and killed. CPU threads are divided among them unless ``OMP_NUM_THREADS`` is set.

    Args:
        command: program and arguments, the same for all.
        processes: how many.
    """
    # The meeting point lives here and not in the first process: its port is free for sure, and it outlives them all.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    tie, held_here = os.pipe()  # closed by the kernel when this process ends, however it ends
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        _TIE: str(tie),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    team: list[subprocess.Popen] = []
    with contextlib.ExitStack() as held, _forwarded(team):
        said: list[IO[bytes] | None] = [None]
        said += [held.enter_context(tempfile.TemporaryFile()) for _ in range(processes - 1)]
        try:
            for rank in range(processes):
                team.append(
                    subprocess.Popen(
                        list(command),
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=None if rank == 0 else subprocess.DEVNULL,
                        stdout=said[rank],
                        stderr=said[rank] and subprocess.STDOUT,
                        pass_fds=(tie,),
                        # A session of their own: Ctrl-C in the terminal reaches this process alone, which passes it on.
                        start_new_session=True,
                    )
                )
            order = _wait(team)
        finally:
            for process in team:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(tie)
            os.close(held_here)
        return _explain(team, order, said)


def _wait(team: list[subprocess.Popen]) -> list[int]:
    """Wait until all have ended, not long after one has failed, and return their numbers in the order they failed."""
    order: list[int] = []
    failed_at: float | None = None
    while any(process.poll() is None for process in team):
        new = [rank for rank, process in enumerate(team) if process.returncode and rank not in order]
        order += sorted(new, key=lambda rank: team[rank].returncode == PEER_FAILED)
        if order and failed_at is None:
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            break
        time.sleep(0.1)
    new = [rank for rank, process in enumerate(team) if process.returncode and rank not in order]
    return order + sorted(new, key=lambda rank: team[rank].returncode == PEER_FAILED)


def _explain(team: list[subprocess.Popen], order: list[int], said: list[IO[bytes] | None]) -> int:
    """Say what failed first, where that process could not say it on the terminal itself; return the exit code."""
    guilty = next((rank for rank in order if team[rank].returncode != PEER_FAILED), None)
    if guilty is None:
        return team[order[0]].returncode if order else 0
    code, output = team[guilty].returncode, said[guilty]
    if output is not None and any(process.returncode != code for process in team):
        output.seek(max(0, output.seek(0, os.SEEK_END) - _LONGEST))
        sys.stderr.write(output.read().decode(errors="replace"))
    if code < 0:
        name = signal.Signals(-code).name
        why = "; the system does that where memory has run out" if name == "SIGKILL" else ""
        sys.stderr.write(
            f"Error: process {guilty} of {len(team)} was ended by {name}{why}. The others were stopped; the run goes "
            "on from its newest checkpoint when it is started again\n"
        )
        return 128 - code
    return code


@contextlib.contextmanager
def _forwarded(team: list[subprocess.Popen]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to every process, once each time; they decide together when they end."""

    def forward(number: int, frame: object) -> None:
        for process in team:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():  # Python handles signals there alone
        yield
        return
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_launched() -> bool:
    """Whether :func:`launch` started this process."""
    return _TIE in os.environ


def follow_launcher() -> None:
    """Send this process SIGTERM when its launcher is gone."""

    def watch(tie: int) -> None:
        if not os.read(tie, 1):  # nothing is ever written: this is the end of the launcher
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(int(os.environ[_TIE]),), daemon=True).start()

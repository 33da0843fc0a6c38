"""Launch several processes of one training on this machine, and report which one failed.

Unlike ``torchrun`` it forwards a signal to every process once and then gives the processes all the time they need to
save; when the launcher is killed, they save and end, too.
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

#: Exit code of a process that ended because another one failed.
PEER_FAILED = 113
#: Seconds until the other processes are killed after one has failed; they notice at their next collective operation.
GRACE = 20.0
_LAUNCHER_PIPE = "QSATTN_LAUNCHER"
_MAX_OUTPUT = 20_000


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command as several processes that train together, and return the exit code of the first one that failed.

    The first process uses this one's terminal; the output of another one is shown if it fails. When a process fails,
    the others are killed after :data:`GRACE` seconds. CPU threads are divided among the processes unless
    ``OMP_NUM_THREADS`` is set.

    Args:
        command: program and arguments, the same for all.
        processes: the number of processes.
    """
    # The rendezvous store runs here, not in the first process: its port is certainly free, and it outlives them all.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    read_end, write_end = os.pipe()  # the kernel closes it when this process ends, however it ends
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",  # older PyTorch, 2.4, cannot do without it then
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        _LAUNCHER_PIPE: str(read_end),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    team: list[subprocess.Popen] = []
    with contextlib.ExitStack() as held, _forwarded(team):
        outputs: list[IO[bytes] | None] = [None]
        outputs += [held.enter_context(tempfile.TemporaryFile()) for _ in range(processes - 1)]
        try:
            for rank in range(processes):
                team.append(
                    subprocess.Popen(
                        list(command),
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=None if rank == 0 else subprocess.DEVNULL,
                        stdout=outputs[rank],
                        stderr=outputs[rank] and subprocess.STDOUT,
                        pass_fds=(read_end,),
                        # In a session of its own: Ctrl-C in the terminal reaches only this process, which forwards it.
                        start_new_session=True,
                    )
                )
            order = _wait(team)
        finally:
            for process in team:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(read_end)
            os.close(write_end)
        return _report(team, order, outputs)


def _wait(team: list[subprocess.Popen]) -> list[int]:
    """Wait until all have ended, or GRACE seconds after a failure; return the failed ranks in the order of failing."""
    order: list[int] = []
    failed_at: float | None = None
    while True:
        running = any(process.poll() is None for process in team)
        new = [rank for rank, process in enumerate(team) if process.returncode and rank not in order]
        order += sorted(new, key=lambda rank: team[rank].returncode == PEER_FAILED)
        if order and failed_at is None:
            failed_at = time.monotonic()
        if not running or (failed_at is not None and time.monotonic() - failed_at > GRACE):
            return order
        time.sleep(0.1)


def _report(team: list[subprocess.Popen], order: list[int], outputs: list[IO[bytes] | None]) -> int:
    """Print the output of the process that failed first if it was captured; return the exit code."""
    failed = next((rank for rank in order if team[rank].returncode != PEER_FAILED), None)
    if failed is None:
        return team[order[0]].returncode if order else 0
    code, output = team[failed].returncode, outputs[failed]
    if output is not None and any(process.returncode != code for process in team):
        output.seek(max(0, output.seek(0, os.SEEK_END) - _MAX_OUTPUT))
        sys.stderr.write(output.read().decode(errors="replace"))
    if code < 0:
        name = signal.Signals(-code).name
        why = "; the system may do this when memory runs out" if name == "SIGKILL" else ""
        sys.stderr.write(
            f"Error: process {failed} of {len(team)} was ended by {name}{why}. The others were stopped; start the "
            "run again to resume from its newest checkpoint\n"
        )
        return 128 - code
    return code


@contextlib.contextmanager
def _forwarded(team: list[subprocess.Popen]) -> Iterator[None]:
    """Forward SIGINT, SIGTERM and SIGHUP to every process; the processes agree on when to end."""

    def forward(number: int, frame: object) -> None:
        for process in team:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
        yield
        return
    forwarded = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in forwarded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_launched() -> bool:
    """Return whether :func:`launch` started this process."""
    return _LAUNCHER_PIPE in os.environ


def follow_launcher() -> None:
    """Send SIGTERM to this process when its launcher ends."""

    def watch(pipe: int) -> None:
        if not os.read(pipe, 1):  # nothing is ever written, so this is the end of the launcher
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(int(os.environ[_LAUNCHER_PIPE]),), daemon=True).start()

"""Training one model in several processes: ranks, and the collective operations between them.

Every process (a *rank*) holds the whole model and takes its share of each batch; ``train.batch_size`` is per rank.
Gradients are averaged explicitly, after a method has differentiated all its terms and before the optimizer steps:
methods differentiate term by term with respect to chosen parameters, which the hooks of DistributedDataParallel do not
support. Losses are means over a batch, so the mean over ranks is the mean over the whole batch.

There are two process groups: a gloo group for control messages (stop requests, errors), which never waits for a device,
and on CUDA an NCCL group for gradients.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qsattn_plugin.devices import pick_device, send
from qsattn_plugin.errors import UserError

__all__ = ["PeerLostError", "RemoteError", "World", "world"]

#: How long ranks wait for a silent one, for example while rank 0 evaluates. A rank that ended is noticed at once,
#: through its closed connections.
TIMEOUT = timedelta(hours=1)


class RemoteError(UserError):
    """An error of another rank; rank 0 reports it to the user."""


class PeerLostError(UserError):
    """Another rank ended without an error message, or cannot be reached."""


class World:
    """The processes that train together; without arguments this process alone, where every operation is the identity.

    All methods except :meth:`device` and :meth:`leave` are collective: every rank must call them in the same order.

    Attributes:
        rank: this process's rank, 0 to ``size - 1``.
        size: the number of processes.
        main: whether this is rank 0, the only one that writes files and output.
        on_device: whether gradients are reduced between devices, by NCCL.
    """

    def __init__(self, rank: int = 0, size: int = 1, cpu_group: dist.ProcessGroup | None = None):
        self.rank, self.size, self.main = rank, size, rank == 0
        self._cpu_group = cpu_group
        self._gradient_group = cpu_group
        self.on_device = False

    def device(self, name: str) -> torch.device:
        """Return the device of this rank: ``name``, or with several processes the GPU of its local rank.

        Raises:
            UserError: there is no such device, or not one for each rank.
        """
        if self.size == 1:
            return pick_device(name)
        # Before any GPU is used: otherwise each process would also create a context on the first one.
        if not (torch.cuda.is_available() and (name == "auto" or name.partition(":")[0] == "cuda")):
            device = pick_device(name)
            if device.type == "cpu":
                return device
            raise UserError(f"several processes train on CPUs or CUDA GPUs, not on {device.type}; set train.device=cpu")
        if ":" in name:
            raise UserError(f"train.device={name} is one GPU, but {self.size} processes train; set it to cuda or auto")
        here, number = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", self.rank))
        if number >= here:
            what = f"{os.environ.get('LOCAL_WORLD_SIZE', self.size)} processes on this machine need a GPU each"
            raise UserError(f"{what}, and it has {here}; start fewer, or set train.device=cpu")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        return device

    def join(self, method: nn.Module, device: torch.device) -> None:
        """Broadcast rank 0's weights to every rank, and set up the reduction of gradients on ``device``."""
        if self.size == 1:
            return
        if device.type == "cuda":
            self._gradient_group, self.on_device = _new_group("nccl"), True
        for tensors in _by_dtype([*method.parameters(), *method.buffers()]):
            flat = _flatten(tensors)
            dist.broadcast(flat, 0, group=self._gradient_group)
            _unflatten_into(tensors, flat)

    def leave(self) -> None:
        """Release the groups. gloo's threads end with the last reference to their group; one that still runs when the
        interpreter exits aborts the process (SIGABRT, "terminate called without an active exception").
        """
        self._cpu_group = self._gradient_group = None

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks; a missing gradient counts as zero.

        An inf or NaN of one rank spreads to all, so that gradient scalers decide the same everywhere.
        """
        if self.size == 1:
            return
        for group in _by_dtype(parameters):
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group]
            # Appended: which parameters have a gradient at all. The optimizer skips those without one on any rank.
            found = torch.tensor([p.grad is not None for p in group], dtype=group[0].dtype)
            complete = bool(found.all())
            flat = torch.cat([_flatten(gradients), send(found, group[0].device)])
            dist.all_reduce(flat, group=self._gradient_group)
            # Read only by a rank that lacks a gradient: reading makes the host wait for the device.
            anywhere = [True] * len(group) if complete else (flat[-len(group) :] > 0).tolist()
            _unflatten_into(gradients, flat[: -len(group)] / self.size)
            for parameter, gradient, exists in zip(group, gradients, anywhere, strict=True):
                parameter.grad = gradient if exists else None

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value in rank order, on all ranks. For small picklable values."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._cpu_group)
        return values

    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the tensors of every rank, on the CPU, to rank 0; the other ranks get only their own."""
        if self.size == 1:
            return [tensors]
        mine = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        parts: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(mine, parts, dst=0, group=self._cpu_group)
        return parts or [mine]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on all ranks."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0, group=self._cpu_group)
        return values[0]

    def all_reduce_max(self, number: int) -> int:
        """Return the maximum over the ranks. Cheap enough for every step: it never waits for a device."""
        if self.size == 1:
            return int(number)
        largest = torch.tensor(int(number))
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._cpu_group)
        return int(largest)

    def all_reduce_mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return each value's mean over the ranks that have it; for booleans, whether any is true."""
        if self.size == 1:
            return values
        every = self.all_gather(values)
        names = dict.fromkeys(name for one in every for name in one)
        having = {name: [one[name] for one in every if name in one] for name in names}
        return {
            name: any(numbers) if isinstance(numbers[0], bool) else sum(numbers) / len(numbers)
            for name, numbers in having.items()
        }

    @contextlib.contextmanager
    def sync_errors(self) -> Iterator[None]:
        """Raise a :class:`UserError` of any rank on all ranks. The context must not contain collective operations.

        Raises:
            UserError: on rank 0: its own error, or that of the first rank that failed.
            RemoteError: on the other ranks.
        """
        mine: UserError | None = None
        try:
            yield
        except UserError as error:
            if self.size == 1:
                raise
            mine = error
        told = self.all_gather(None if mine is None else str(mine))
        failed = next((rank for rank, text in enumerate(told) if text is not None), None)
        if failed is None:
            return
        if not self.main:
            raise RemoteError(f"process {failed}: {told[failed]}") from mine
        raise mine or UserError(f"process {failed}: {told[failed]}")


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Join the processes that ``torchrun`` or ``qsattn fit --nproc`` started; yield a world of one if there are none.

    Raises:
        PeerLostError: another rank ended or cannot be reached.
        UserError: the environment gives a world size that is no number, or no rank or no address with it.
    """
    given = os.environ.get("WORLD_SIZE") or "1"
    if not given.isdecimal():
        raise UserError(
            f"WORLD_SIZE must be a number of processes, got {given!r}; start them with torchrun, or unset it"
        )
    size = int(given)
    if size == 1:
        yield World()
        return
    made = not dist.is_initialized()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if made and missing:
        what = f"WORLD_SIZE is {size}, but {missing[0]} is not set"
        raise UserError(f"{what}; start processes with torchrun, or unset it")
    here, ended_well = World(), False
    try:
        if made:
            # Every optimizer imports this module, whose functions hold the world's group as a default argument if it
            # exists at that time. Importing it earlier lets the group be released at the end.
            importlib.import_module("torch.distributed.nn.functional")
            dist.init_process_group("gloo", timeout=TIMEOUT)
        here = World(dist.get_rank(), size, dist.group.WORLD if made else _new_group("gloo"))
        yield here
        ended_well = True
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors; only their text, which names its source file, tells them apart.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise PeerLostError(
            "another process of this training ended or cannot be reached; start the run again to resume from its "
            f"newest checkpoint ({str(error).splitlines()[0].partition('. ')[0]})"
        ) from error
    finally:
        here.leave()
        # Destroying NCCL waits for the other ranks, which may still be inside an operation that this rank has left.
        if made and dist.is_initialized() and (ended_well or not here.on_device):
            # Before PyTorch 2.8 the group's end waits for gloo's threads and keeps the interpreter's lock meanwhile,
            # which such a thread may want for the tensors of its last operation: it gets it first (PyTorch #154976).
            if torch.__version__ < "2.8":
                time.sleep(0.2)
            dist.destroy_process_group()


def check_distributable(method: nn.Module, here: World) -> None:
    """Check that a method trains on several ranks as on one.

    Raises:
        UserError: a loss or a norm depends on the whole batch, of which a rank sees only its part.
    """
    for name, module in method.named_modules() if here.size > 1 else ():
        if getattr(module, "negatives", None) == "batch":
            what = "objective.negatives=batch compares the images of one process only, so the loss would differ"
            raise UserError(f"{what} with several processes. Use internal, or one process")
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            what = f"{name} is a batch norm, which would see the images of one process only"
            raise UserError(f"{what}; use norm: instance, or one process")


def _new_group(backend: str) -> dist.ProcessGroup:
    # Without named ranks every process is in it: then torch returns no number.
    return cast("dist.ProcessGroup", dist.new_group(backend=backend, timeout=TIMEOUT))


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the tensors grouped by dtype, in order."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _flatten(tensors: list[Tensor]) -> Tensor:
    """Return all values as one vector, in logical order whatever the memory formats."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def _unflatten_into(tensors: list[Tensor], flat: Tensor) -> None:
    """Copy the values of a vector from :func:`_flatten` back into the tensors."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)])

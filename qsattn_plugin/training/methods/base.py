"""The base of all training methods: networks, optimizers, precision, and one step."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qsattn_plugin.devices import no_autocast
from qsattn_plugin.storage.weights import in_a_line, misfits
from qsattn_plugin.training.distributed import World
from qsattn_plugin.training.precision import PRECISIONS
from qsattn_plugin.training.tuning import compile_networks, memory_format


class Parts(Protocol):
    """Builds the parts that a recipe names; each call returns a new one.

    ``back`` asks for the part of the translation from the target to the source domain.
    """

    @property
    def alike(self) -> bool:
        """Whether images of both domains have the same channels, so that a generator can take those that it makes."""

    def generator(self, back: bool = False) -> nn.Module:
        """Return a new generator."""

    def discriminator(self, back: bool = False) -> nn.Module:
        """Return a new discriminator of the generator's translations."""

    def encoder(self, generator: nn.Module, back: bool = False, translations: bool = True) -> Any:
        """Return a new encoder; one that has no network of its own takes its features from ``generator``.

        It encodes images of the source domain and, with ``translations``, of the target domain too.
        """

    def augmentation(self) -> Callable[[Tensor, torch.Generator], Tensor]:
        """Return the augmentation of the images that a discriminator sees."""

    def sampler(self, taps: Sequence[int | str]) -> Any:
        """Return a new sampler for an encoder with these taps."""


def check_identity(parts: Parts, key: str, value: object) -> None:
    """Raise :class:`ValueError` for a loss that translates images of the target domain, if they have other channels.

    ``key`` is the one under ``objective`` that asks for it; ``value`` switches it off.
    """
    if not parts.alike:
        raise ValueError(
            f"{key}: a generator cannot translate images of its target domain, whose channels differ from those of its "
            f"source (data.channels); set it to {value}"
        )


class Method(nn.Module, abc.ABC):
    """A training method. Its sub-modules are saved in checkpoints.

    A registered method's constructor takes :class:`Parts` and, as keyword-only arguments, the keys that a recipe may
    set under ``objective``. ``defaults`` is a partial recipe that any explicit key overrides.
    """

    defaults: Mapping[str, Any] = {}

    #: The share of the training's steps that are done, 0 to 1; the training loop sets it before every step.
    progress: float = 0.0

    #: The processes that train together; gradients are averaged over them before every optimizer step.
    world: World = World()

    @abc.abstractmethod
    def roles(self) -> dict[str, list[nn.Module]]:
        """Return the networks of each optimizer, by the optimizer's name."""

    @abc.abstractmethod
    def step(self, batch: Mapping[str, Tensor], draws: torch.Generator, observe: bool = False) -> dict[str, Tensor]:
        """Train the networks for one step.

        Args:
            batch: "A" (source) and "B" (target), each (B, C, H, W) in [-1, 1].
            draws: the generator of all random numbers of the step.
            observe: also return statistics that cost time.

        Returns:
            Losses and, with ``observe``, statistics by name: detached 0-dim tensors on the device.
        """

    @abc.abstractmethod
    def published(self) -> dict[str, nn.Module]:
        """Return the generators that are averaged, evaluated and published, by name; the main one first."""

    def memory(self) -> dict[str, Tensor]:
        """Return the state besides the networks that a checkpoint must hold, as tensors by name."""
        return {}

    def load_memory(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`memory` returned; raise ValueError if the method has no such state."""
        if tensors:
            raise ValueError(f"{type(self).__name__} has no memory, but was given {', '.join(tensors)}")

    def start(self, train: Any, device: torch.device) -> None:
        """Move to the device and create the optimizers (Adam, one for each of :meth:`roles`) of a section ``train``.

        Its ``precision`` has been chosen.

        Raises:
            UserError: a setting is not available on this machine.
        """
        self.memory_format = memory_format(train.channels_last, device)
        # torch takes both at once, and declares each alone.
        self.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if train.compile:
            compile_networks(self.compilable(), device)
        self.device = device
        self.passes = train.accumulate
        self.base_lr = train.lr
        self.dtype = PRECISIONS[train.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self._stepped: set[str] = set()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._names: dict[str, list[str]] = {}
        names = {id(p): n for n, p in self.named_parameters()}
        for role, networks in self.roles().items():
            trained = [p for network in networks for p in network.parameters() if p.requires_grad]
            # Fused: one kernel for all parameters (one pass over memory on a CPU) instead of several for each.
            self.optimizers[role] = torch.optim.Adam(trained, lr=train.lr, betas=tuple(train.betas), fused=True)
            self._names[role] = [names[id(p)] for p in trained]

    def compilable(self) -> list[nn.Module]:
        """Return the networks that ``train.compile`` compiles, each separately."""
        networks = [network for group in self.roles().values() for network in group]
        return [n for n in networks if any(p.requires_grad for p in n.parameters())]

    def divide(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Split a step's batch into the equal parts that are processed one after the other (``train.accumulate``)."""
        if any(len(images) % self.passes for images in batch.values()):
            sizes = " and ".join(str(len(images)) for images in batch.values())
            raise ValueError(f"batch: {sizes} images are not {self.passes} equal parts")
        chunks = [images.contiguous(memory_format=self.memory_format).chunk(self.passes) for images in batch.values()]
        return [dict(zip(batch, part, strict=True)) for part in zip(*chunks, strict=True)]

    @staticmethod
    def merge(logs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Merge the logs of a step's parts: means, and for booleans whether any is true."""
        if len(logs) == 1:
            return logs[0]
        stacked = {name: torch.stack([log[name] for log in logs]) for name in logs[0]}
        return {name: s.any() if s.dtype == torch.bool else s.mean() for name, s in stacked.items()}

    def set_rate(self, factor: float) -> None:
        """Set every optimizer's learning rate to ``factor`` times the recipe's."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.base_lr * factor

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the autocast context for forward passes."""
        device = self.device.type
        return no_autocast(device) if self.dtype is None else torch.autocast(device, dtype=self.dtype)

    def update(self, role: str | Sequence[str], terms: list[Callable[[], Tensor]], parts: int = 1) -> None:
        """Take one step of an optimizer, or of several, on the sum of the losses that ``terms`` compute.

        Each term is removed from the list, computed and differentiated before the next, so that only one graph is alive
        at a time: for terms that share no activations this costs nothing and halves the memory. Gradients are computed
        only for the parameters of these optimizers, ``role``. If the batch was divided, each of its ``parts`` has terms
        of its own, and the loss is the mean over the parts.
        """
        roles = {role} if isinstance(role, str) else set(role)
        if self._stepped & roles:
            self.end_step()
        optimizers = [optimizer for name, optimizer in self.optimizers.items() if name in roles]
        trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        while terms:
            with self.autocast():
                loss = terms.pop(0)() / parts
            # Outside autocast: inside it, float32 operations would be differentiated in half precision.
            self.scaler.scale(loss).backward(inputs=trained)
        self.world.average_gradients(trained)
        for optimizer in optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)  # now, not at the next step: the other networks need the memory
        self._stepped |= roles

    def end_step(self) -> None:
        """Update the gradient scale of fp16.

        The training loop calls it after every :meth:`step`; a second :meth:`update` of one role calls it too.
        """
        if self._stepped:
            self.scaler.update()
            self._stepped.clear()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizers' state tensors by ``role/parameter/quantity``."""
        return {
            f"{role}/{self._names[role][index]}/{quantity}": value
            for role, optimizer in self.optimizers.items()
            for index, state in optimizer.state_dict()["state"].items()
            for quantity, value in state.items()
        }

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`optimizer_state` returned.

        Raises:
            ValueError: a tensor has another shape than its parameter, or a parameter has not all of them.
        """
        for role, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            state: dict[int, dict[str, Tensor]] = {}
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            for index, (name, parameter) in enumerate(zip(self._names[role], trained, strict=True)):
                prefix = f"{role}/{name}/"
                found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                wanted = {k: parameter if v.ndim else v for k, v in found.items()}
                if isinstance(optimizer, torch.optim.Adam):
                    wanted |= {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.zeros(())}
                if found and (wrong := misfits(wanted, found, owner="its parameter")):
                    raise ValueError(f"optimizer/{prefix}{in_a_line(wrong)}")
                # In the parameter's memory format, which fused kernels expect.
                state[index] = {
                    k: torch.empty_like(parameter, device=v.device, dtype=v.dtype).copy_(v) if v.ndim else v
                    for k, v in found.items()
                }
            optimizer.load_state_dict({"state": {i: s for i, s in state.items() if s}, "param_groups": groups})

"""What every way to train has in common: networks, optimizers, precision, and one step."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qsattn_plugin.training.distributed import World
from qsattn_plugin.training.tuning import compile_networks, memory_format

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Parts(Protocol):
    """Builds the networks that a recipe names; a method calls each as often as it needs one."""

    def generator(self) -> nn.Module:
        """A new generator."""

    def discriminator(self) -> nn.Module:
        """A new discriminator."""

    def encoder(self, generator: nn.Module) -> nn.Module:
        """A new encoder, for the features of ``generator`` where it lives inside one."""

    def augmentation(self) -> Callable[[Tensor, torch.Generator], Tensor]:
        """What changes the images that a discriminator sees."""

    def sampler(self, taps: Sequence[int | str]) -> Any:
        """A new sampler, for an encoder that gives these taps."""


class Method(nn.Module, abc.ABC):
    """A way to train. Its sub-modules are what a checkpoint holds.

    A registered method's constructor takes :class:`Parts` and, as keyword-only arguments, what a recipe may set under
    ``objective``. ``defaults`` is a piece of a recipe that lies below every key that somebody wrote.
    """

    defaults: Mapping[str, Any] = {}

    #: The processes that train together; their gradients are averaged before every optimizer step.
    world: World = World()

    @abc.abstractmethod
    def roles(self) -> dict[str, list[nn.Module]]:
        """Return which networks share an optimizer, by the optimizer's name."""

    @abc.abstractmethod
    def step(self, batch: Mapping[str, Tensor], draws: torch.Generator, observe: bool = False) -> dict[str, Tensor]:
        """Change the networks once.

        Args:
            batch: "A" and "B", each (B, C, H, W) in [-1, 1].
            draws: every random decision of the step comes from here.
            observe: also return what is worth a look but costs time.

        Returns:
            Losses and, with ``observe``, statistics by name: 0-dim tensors, on the device, detached.
        """

    @abc.abstractmethod
    def published(self) -> dict[str, nn.Module]:
        """Return the generators that are averaged, evaluated and published, by name; the main one comes first."""

    def memory(self) -> dict[str, Tensor]:
        """Return what the method remembers between steps beside its networks, for a checkpoint."""
        return {}

    def load_memory(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`memory` gave."""
        if tensors:
            raise ValueError(f"{type(self).__name__} remembers nothing, but was given {', '.join(tensors)}")

    def start(self, train: Any, device: torch.device) -> None:
        """Move to the device and make the optimizers (Adam, one for each of :meth:`roles`).

        Args:
            train: a recipe's ``train`` section.
            device: where training happens.

        Raises:
            UserError: a setting cannot be had on this machine.
        """
        self.memory_format = memory_format(train.channels_last, device)
        self.to(device, memory_format=self.memory_format)
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
            # Fused: one kernel (one pass over memory on a CPU) for all parameters instead of several each.
            self.optimizers[role] = torch.optim.Adam(trained, lr=train.lr, betas=tuple(train.betas), fused=True)
            self._names[role] = [names[id(p)] for p in trained]

    def compilable(self) -> list[nn.Module]:
        """Return the networks that ``train.compile`` compiles, each by itself."""
        networks = [network for group in self.roles().values() for network in group]
        return [n for n in networks if any(p.requires_grad for p in n.parameters())]

    def divide(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the parts of a step's batch that go through the networks one after the other (``train.accumulate``).

        Raises:
            ValueError: the batch is not as many equal parts.
        """
        if any(len(images) % self.passes for images in batch.values()):
            sizes = " and ".join(str(len(images)) for images in batch.values())
            raise ValueError(f"batch: {sizes} images are not {self.passes} equal parts")
        chunks = [images.contiguous(memory_format=self.memory_format).chunk(self.passes) for images in batch.values()]
        return [dict(zip(batch, part, strict=True)) for part in zip(*chunks, strict=True)]

    @staticmethod
    def merge(logs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what a step reports, from what its parts did: means, and whether any of the yes-or-no ones."""
        if len(logs) == 1:
            return logs[0]
        stacked = {name: torch.stack([log[name] for log in logs]) for name in logs[0]}
        return {name: s.any() if s.dtype == torch.bool else s.mean() for name, s in stacked.items()}

    def set_rate(self, factor: float) -> None:
        """Set every optimizer's learning rate to ``factor`` times the recipe's."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.base_lr * factor

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def update(self, role: str, terms: list[Callable[[], Tensor]], parts: int = 1) -> None:
        """Go one step down the sum of the losses that ``terms`` compute, with one optimizer.

        Each term is taken off the list, computed and differentiated before the next, so that only one graph is alive at
        a time: for terms that share no activations this costs nothing and halves the memory. Gradients flow to
        this optimizer's parameters alone: a discriminator that judges is not differentiated. Where the batch was
        divided, every one of its ``parts`` has terms of its own, and the mean over the parts is what counts.
        """
        if role in self._stepped:
            self.end_step()
        optimizer = self.optimizers[role]
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        while terms:
            with self.autocast():
                loss = terms.pop(0)() / parts
            # Outside the autocast: inside it, what was computed in float32 would be differentiated in half precision.
            self.scaler.scale(loss).backward(inputs=trained)
        self.world.average_gradients(trained)
        self.scaler.step(optimizer)
        self._stepped.add(role)
        optimizer.zero_grad(set_to_none=True)  # not kept until the next step: the other networks' turn needs the memory

    def end_step(self) -> None:
        """Let the gradients' scale (of fp16) follow from what the optimizers met since the last time.

        The training does it after every :meth:`step`; a second update of one role does it as well.
        """
        if self._stepped:
            self.scaler.update()
            self._stepped.clear()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizers' tensors by ``role/parameter/quantity``."""
        return {
            f"{role}/{self._names[role][index]}/{quantity}": value
            for role, optimizer in self.optimizers.items()
            for index, state in optimizer.state_dict()["state"].items()
            for quantity, value in state.items()
        }

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`optimizer_state` gave."""
        for role, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            state: dict[int, dict[str, Tensor]] = {}
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            for index, (name, parameter) in enumerate(zip(self._names[role], trained, strict=True)):
                prefix = f"{role}/{name}/"
                found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                # Laid out in memory as the parameter is: fused kernels walk through both side by side.
                state[index] = {
                    k: torch.empty_like(parameter, device=v.device, dtype=v.dtype).copy_(v) if v.ndim else v
                    for k, v in found.items()
                }
            optimizer.load_state_dict({"state": {i: s for i, s in state.items() if s}, "param_groups": groups})

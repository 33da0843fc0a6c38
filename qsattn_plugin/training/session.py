"""All that lives while a recipe is trained: networks, optimizers, averages, and how they go to disk and come back."""

from __future__ import annotations

import copy
import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.devices import pick_device
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import find
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.registry.recipe.schema import INJECTED
from qsattn_plugin.registry.recipe.sections import plain
from qsattn_plugin.storage import load_tensors
from qsattn_plugin.training.building import RecipeParts
from qsattn_plugin.training.ema import EMA

_NETWORKS = 1


class GeneratorMismatchWarning(UserWarning):
    """Weights are taken over into a generator that computes something else with them."""


class Session:
    """A recipe's method with its optimizers and averages, at some step.

    Args:
        recipe: what to build.
        device: where; ``train.device`` without it.
        warm: take over weights where the recipe says so (``train.init_from``); not needed before :meth:`restore`.
    """

    def __init__(self, recipe: Recipe, device: torch.device | None = None, warm: bool = True):
        self.recipe = recipe
        try:
            self.device = device or pick_device(recipe.train.device)
        except UserError as error:
            raise recipe.error("train.device", str(error)) from error
        with torch.random.fork_rng(devices=[]):
            # Weights are drawn on the CPU whatever the device, so that a seed means the same network everywhere.
            torch.random.default_generator.manual_seed(derive_seed(recipe.train.seed, _NETWORKS))
            self.method = recipe.build("method", parts=RecipeParts(recipe))
        if warm and recipe.train.init_from is not None:
            self.warm_start(recipe.train.init_from)
        self.method.start(recipe.train, self.device)
        decay = recipe.train.ema
        self.averages = (
            {name: EMA(network, decay) for name, network in self.method.published().items()} if decay else {}
        )
        #: Steps done.
        self.step = 0

    def translators(self) -> dict[str, nn.Module]:
        """Return the generators to look at, by name: averaged where the recipe says so; the first is the main one."""
        if self.averages:
            return {name: ema.average for name, ema in self.averages.items()}
        if self.recipe.train.compile:
            # Copies are not compiled: pictures come in many sizes, and each would be compiled for anew.
            return {name: copy.deepcopy(network) for name, network in self.method.published().items()}
        return self.method.published()

    def rate_factor(self) -> float:
        """Return what the learning rate is multiplied with at this step: 1, then falling linearly to 0 at the end."""
        train = self.recipe.train
        if self.step < train.decay_from:
            return 1.0
        return max(0.0, 1 - (self.step - train.decay_from) / max(1, train.steps - train.decay_from))

    def state(self, memories: Sequence[Mapping[str, Tensor]] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a checkpoint holds: tensors by name, and a JSON-able document.

        Args:
            memories: what each of several processes' method remembers; None is this one's alone.
        """
        tensors = {f"model/{name}": t for name, t in self.method.state_dict().items()}
        tensors |= {f"optimizer/{name}": t for name, t in self.method.optimizer_state().items()}
        for rank, memory in enumerate([self.method.memory()] if memories is None else memories):
            tensors |= {f"{_memory(rank)}/{name}": t for name, t in memory.items()}
        for name, ema in self.averages.items():
            tensors |= {f"ema/{name}/{key}": t for key, t in ema.average.state_dict().items()}
        prefixes = {id(module): name for name, module in self.method.named_modules()}
        document = {
            "kind": "checkpoint",
            "recipe": self.recipe.to_dict(),
            "scaler": self.method.scaler.state_dict(),
            "generators": {
                name: {
                    **describe_generator(self.recipe),
                    "prefix": f"ema/{name}/" if self.averages else f"model/{prefixes[id(network)]}.",
                }
                for name, network in self.method.published().items()
            },
            "torch": torch.__version__,
        }
        return tensors, document

    def restore(self, path: Path, rank: int = 0) -> None:
        """Go back to a checkpoint of this recipe.

        Args:
            path: the checkpoint.
            rank: which process's memory to take; one that was not there when it was written remembers nothing.

        Raises:
            UserError: it holds other networks than the recipe's.
        """
        tensors, document = load_tensors(path)
        by_room: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            room, _, key = name.partition("/")
            by_room[room][key] = tensor
        _load(self.method, by_room["model"], path)
        self.method.load_optimizer_state(by_room["optimizer"])
        self.method.load_memory(by_room[_memory(rank)])
        if document["scaler"]:  # it is empty where the precision was another
            self.method.scaler.load_state_dict(document["scaler"])
        for name, ema in self.averages.items():
            mine = {k.removeprefix(f"{name}/"): t for k, t in by_room["ema"].items() if k.startswith(f"{name}/")}
            _load(ema.average, mine, path)
        self.step = document["step"]

    def warm_start(self, path: Path) -> None:
        """Take the weights of another training's checkpoint, or of a published file; optimizers start anew.

        The generators must fit whole; of the other networks, what agrees in name and shape is taken.

        Raises:
            UserError: there is no such file, or its generator is not the recipe's.
        """
        try:
            tensors, document = load_tensors(path, "model/")
            if not tensors:  # a published file holds generators alone
                tensors = self._published_in(*load_tensors(path))
        except UserError as error:
            raise self.recipe.error("train.init_from", str(error)) from error
        mine = self.method.state_dict()
        fits = {k: t for k, t in tensors.items() if k in mine and mine[k].shape == t.shape}
        published = {id(network) for network in self.method.published().values()}
        wanted = tuple(f"{name}." for name, module in self.method.named_modules() if id(module) in published)
        lacking = [k for k in mine if k.startswith(wanted) and k not in fits]
        if lacking:
            there = f"{tuple(tensors[lacking[0]].shape)} there" if lacking[0] in tensors else "not there"
            raise self.recipe.error(
                "train.init_from",
                f"the generator in {path} does not fit the recipe's: {len(lacking)} tensors differ, the first is "
                f"{lacking[0]}, {tuple(mine[lacking[0]].shape)} here and {there}",
            )
        self._compare_generators(path, document)
        self.method.load_state_dict(fits, strict=False)

    def _compare_generators(self, path: Path, document: Mapping[str, Any]) -> None:
        """Warn where the same tensors belong to generators that compute another thing with them."""
        own = describe_generator(self.recipe)
        for name, spec in (document.get("generators") or {}).items():
            theirs, mine = spec.get("arguments", {}), own["arguments"]
            shared = [key for key in theirs if key in mine and key not in ("init", "init_gain")]
            other = [f"{key}={theirs[key]!r}, here {mine[key]!r}" for key in shared if theirs[key] != mine[key]]
            if spec.get("type") != own["type"]:
                other.insert(0, f"type={spec.get('type')!r}, here {own['type']!r}")
            if other:
                text = f"train.init_from: the generator {name} in {path} was trained as another: {'; '.join(other)}"
                warnings.warn(text, GeneratorMismatchWarning, stacklevel=2)

    def _published_in(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a published file's generators, their tensors named as the method names them."""
        names = {id(module): name for name, module in self.method.named_modules()}
        found = {}
        for name, network in self.method.published().items():
            prefix = document.get("generators", {}).get(name, {}).get("prefix")
            if prefix is not None:
                found |= {
                    f"{names[id(network)]}.{key.removeprefix(prefix)}": tensor
                    for key, tensor in tensors.items()
                    if key.startswith(prefix)
                }
        return found


def describe_generator(recipe: Recipe) -> dict[str, Any]:
    """Return a generator's registered name and all its arguments, so that it can be built without the recipe."""
    spec = recipe.part("generator")
    channels = recipe.data.channels
    takes = find("generator", spec.type).signature.parameters
    # Defaults that JSON cannot hold need not be named: the generator is built with them.
    arguments = {n: p.default for n, p in takes.items() if p.default is not p.empty and _is_json(p.default)}
    arguments |= {name: channels for name in INJECTED["generator"] if name in takes}
    return {"type": spec.type, "arguments": {**arguments, **plain(spec.arguments)}, "channels": channels}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _memory(rank: int) -> str:
    """Where a checkpoint holds what a process's method remembers."""
    return f"memory-{rank}" if rank else "memory"


def _load(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()[1:]  # the first names the class
        more = [f"\t... and {len(lines) - 3} more"] if len(lines) > 3 else []
        raise UserError(
            "\n".join(
                [f"{path} does not fit the recipe beside it; was that changed after training began?", *lines[:3], *more]
            )
        ) from error

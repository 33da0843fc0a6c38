"""The state of a training: networks, optimizers, averages; its checkpoints and how they are restored."""

from __future__ import annotations

import copy
import functools
import json
import math
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.data.pixels import memory_of
from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.devices import out_of_memory, pick_device
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import find
from qsattn_plugin.registry.interfaces import side_multiple
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.registry.recipe.schema import INJECTED
from qsattn_plugin.registry.recipe.sections import plain
from qsattn_plugin.storage import DamagedFile, load_tensors
from qsattn_plugin.storage.weights import in_a_line, misfits
from qsattn_plugin.training.building import RecipeParts
from qsattn_plugin.training.ema import EMA
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.training.precision import choose_precision

#: The purposes that seeds are derived for; loader.py has the others.
_NETWORKS, _GLOBAL = 1, 102


class GeneratorMismatchWarning(UserWarning):
    """Weights are loaded into a generator of another configuration, which computes something else with them."""


class Session:
    """A recipe's method with its optimizers and averages, at some step.

    Without a device it is on ``train.device``; ``warm`` loads the weights of ``train.init_from``, which is not needed
    before :meth:`restore`. Without a precision it has the one that ``train.precision`` means on the device.

    Raises:
        UserError: the recipe cannot be built, or the device or the weights are not available.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device | None = None, warm: bool = True, precision: str | None = None
    ):
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
        self.precision = precision or choose_precision(recipe.train.precision, self.device)
        self.method.start(recipe.train.model_copy(update={"precision": self.precision}), self.device)
        averaged = self.method.published().items() if recipe.train.ema else ()
        self.averages = {name: EMA(network, recipe.train.ema) for name, network in averaged}
        #: Steps done so far.
        self.step = 0
        #: The shorter side of the pictures of each domain in the last step, "A" and "B"; empty before the first one.
        self.sides: dict[str, int] = {}

    def translators(self) -> dict[str, nn.Module]:
        """Return the generators to evaluate, by name, averaged if the recipe has ``train.ema``; the main one first."""
        if self.averages:
            return {name: ema.average for name, ema in self.averages.items()}
        if self.recipe.train.compile:
            # Copies are not compiled: pictures have many sizes, and each would need a compilation.
            return {name: copy.deepcopy(network) for name, network in self.method.published().items()}
        return self.method.published()

    @property
    def multiple(self) -> int:
        """The number of pixels of which the sides of images must be multiples: at least 4, as in CUT."""
        return math.lcm(4, *map(side_multiple, self.method.published().values()))

    def memory_error(self) -> UserError:
        """Return the error for a step that there is not enough memory for."""
        return UserError(
            f"out of memory on {self.device} in a step of this recipe: use a smaller train.batch_size (with "
            "train.accumulate for the same step), data.crop or generator.width"
        )

    def advance(self, loader: TrainingLoader, observe: bool = False) -> dict[str, Tensor]:
        """Train for one step on the loader's batch; return what :meth:`Method.step` returns."""
        self.method.set_rate(self.recipe.train.rate_factor(self.step))
        self.method.progress = self.step / self.recipe.train.steps
        # For parts that draw from PyTorch's global generators, such as dropout.
        torch.manual_seed(derive_seed(self.recipe.train.seed, _GLOBAL, self.step, loader.rank))
        batch, draws = loader.batch(self.step)
        losses = self.method.step(batch, draws, observe=observe)
        self.method.end_step()
        for average in self.averages.values():
            average.update(self.step)
        self.sides = loader.sides
        self.step += 1
        return losses

    def state(self, memories: Sequence[Mapping[str, Tensor]] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the contents of a checkpoint: tensors by name, and a JSON-serialisable document.

        ``memories`` are the method's memories of all ranks; None uses only this process's.
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
            "precision": self.precision,
            "scaler": self.method.scaler.state_dict(),
            "generators": {
                name: {
                    **describe_generator(self.recipe, back=name == "backward"),
                    "prefix": f"ema/{name}/" if self.averages else f"model/{prefixes[id(network)]}.",
                    "trained": self.sides.get("B" if name == "backward" else "A"),
                }
                for name, network in self.method.published().items()
            },
            "sides": self.sides,
            "frozen": self.frozen,
            "tensors": dict(Counter(name.partition("/")[0] for name in tensors)),
            "torch": torch.__version__,
        }
        return tensors, document

    @functools.cached_property
    def frozen(self) -> dict[str, int]:
        """The CRC-32 of the weights of every frozen network that checkpoints do not hold, by name."""
        found = {}
        for name, module in self.method.named_modules():
            if not getattr(module, "saved", True):
                found[name] = 0
                for tensor in nn.Module.state_dict(module).values():
                    found[name] = zlib.crc32(memory_of(tensor.cpu().reshape(-1).view(torch.uint8)), found[name])
        return found

    def restore(self, path: Path, rank: int = 0) -> None:
        """Load a checkpoint of this recipe, and of the method's memory that of ``rank`` (empty if there was none).

        Raises:
            UserError: its networks are not the recipe's, or a frozen one has other weights than it was trained with.
        """
        tensors, document = load_tensors(path)
        before = document.get("frozen") or {}
        for name in self.frozen.keys() & before.keys():
            if self.frozen[name] != before[name]:
                raise UserError(
                    f"the frozen weights of {name} are not those that {path} was trained with: set `pretrained` or "
                    "`weights` back, or build a new run, which can begin with these weights (train.init_from)"
                )
        by_section: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            section, _, key = name.partition("/")
            by_section[section][key] = tensor
        counted = {name: len(found) for name, found in by_section.items()}
        if document.get("tensors", counted) != counted:
            raise DamagedFile(f"{path} is damaged: it holds {counted} tensors, and should hold {document['tensors']}")
        _load(self.method, by_section["model"], path)
        try:
            self.method.load_optimizer_state(by_section["optimizer"])
            self.method.load_memory(by_section[_memory(rank)])
            if document["scaler"]:  # empty if the precision was not fp16
                self.method.scaler.load_state_dict(document["scaler"])
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            text = " ".join(str(error).split())
            raise DamagedFile(f"{path} does not fit the recipe.yaml of its run, or is damaged: {text}") from error
        for name, ema in self.averages.items():
            mine = {k.removeprefix(f"{name}/"): t for k, t in by_section["ema"].items() if k.startswith(f"{name}/")}
            # Without one, averaging was switched on since: it begins with these weights.
            _load(ema.average, mine or ema.network.state_dict(), path)
        self.step = document["step"]
        self.sides = document.get("sides") or {}

    def warm_start(self, path: Path) -> None:
        """Load the weights of another training's checkpoint, or of a published file; optimizers start fresh.

        All tensors of the generators must fit; for the other networks, those with equal names and shapes are loaded.

        Raises:
            UserError: there is no such file, or its generator does not fit the recipe's.
        """
        try:
            tensors, document = load_tensors(path, "model/")
            if not tensors:  # a published file holds only generators
                tensors = self._published_in(*load_tensors(path))
        except UserError as error:
            raise self.recipe.error("train.init_from", str(error)) from error
        mine = self.method.state_dict()
        fits = {k: t for k, t in tensors.items() if k in mine and not misfits({k: mine[k]}, {k: t})}
        published = {id(network) for network in self.method.published().values()}
        wanted = tuple(f"{name}." for name, module in self.method.named_modules() if id(module) in published)
        lacking = [k for k in mine if k.startswith(wanted) and k not in fits]
        if lacking:
            theirs = {key: tensors[key] for key in lacking if key in tensors}
            what = in_a_line(misfits({key: mine[key] for key in lacking}, theirs, owner="the recipe's"))
            what = f"the generator in {path} does not fit the recipe's: {len(lacking)} tensors differ: {what}"
            raise self.recipe.error("train.init_from", what)
        self._compare_generators(path, document)
        self.method.load_state_dict(fits, strict=False)

    def _compare_generators(self, path: Path, document: Mapping[str, Any]) -> None:
        """Warn if the file's generators have other arguments than the recipe's, although all tensors fit."""
        for name, spec in (document.get("generators") or {}).items():
            own = describe_generator(self.recipe, back=name == "backward")
            theirs, mine = spec["arguments"], own["arguments"]
            shared = [key for key in theirs if key in mine and key not in ("init", "init_gain")]
            other = [f"{key}={theirs[key]!r}, here {mine[key]!r}" for key in shared if theirs[key] != mine[key]]
            if spec.get("type") != own["type"]:
                other.insert(0, f"type={spec.get('type')!r}, here {own['type']!r}")
            if other:
                text = f"train.init_from: the generator {name} in {path} has other arguments: {'; '.join(other)}"
                warnings.warn(text, GeneratorMismatchWarning, stacklevel=2)

    def _published_in(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a published file's generators under the names that they have in the method."""
        names = {id(module): name for name, module in self.method.named_modules()}
        found: dict[str, Tensor] = {}
        for name, network in self.method.published().items():
            spec, own = (document.get("generators") or {}).get(name), names[id(network)]
            prefix = spec and spec["prefix"]
            if prefix is not None:
                theirs = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
                found |= {f"{own}.{key}": tensor for key, tensor in theirs.items()}
        return found


def describe_generator(recipe: Recipe, back: bool = False) -> dict[str, Any]:
    """Return what suffices to build a generator without the recipe, and the value ranges of its input and output.

    ``back`` is the one from the target to the source domain.
    """
    spec, data = recipe.part("generator"), recipe.data
    channels, out_channels = data.ends("channels", back)
    takes = find("generator", spec.type).signature.parameters
    # Defaults that JSON cannot hold are left out: the generator is built with them anyway.
    arguments = {n: p.default for n, p in takes.items() if p.default is not p.empty and _is_json(p.default)}
    given = dict(zip(INJECTED["generator"], (channels, out_channels), strict=True))
    arguments |= {name: value for name, value in given.items() if name in takes}
    found = {"type": spec.type, "arguments": {**arguments, **plain(spec.arguments)}, "channels": channels}
    if out_channels != channels:
        found["out_channels"] = out_channels
    if data.range is not None:
        found["ranges"] = plain(data.ends("range", back))
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _memory(rank: int) -> str:
    """Return the prefix of a rank's memory in a checkpoint."""
    return f"memory-{rank}" if rank else "memory"


def _load(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    shared = own.keys() & tensors.keys()  # of others torch itself tells; a network may fill in some
    try:
        if wrong := misfits({k: own[k] for k in shared}, {k: tensors[k] for k in shared}, owner="the recipe's network"):
            raise RuntimeError("\n\t".join(["", *sorted(wrong)]))
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()[1:]  # the first names the class
        more = [f"\t... and {len(lines) - 3} more"] if len(lines) > 3 else []
        what = f"{path} does not fit the recipe.yaml of its run; was that changed after training began?"
        raise UserError("\n".join([what, *lines[:3], *more])) from error

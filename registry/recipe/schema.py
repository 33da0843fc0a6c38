"""The schema of recipes: sections, their keys, ranges and defaults.

Sections of parts (``generator``, ``sampler``, ...) have ``type`` and the arguments of that part, which are checked
against its signature, not here.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry.interfaces import PreprocessMode, of_domain

#: Section -> the kind of its part; those in :data:`LISTS` hold a list of parts.
PARTS = {
    "data": "dataset",
    "generator": "generator",
    "discriminator": "discriminator",
    "encoder": "encoder",
    "sampler": "sampler",
    "augmentations": "augmentation",
    "discriminator_augmentations": "augmentation",
}

LISTS = ("augmentations", "discriminator_augmentations")

#: The keys of a recipe with a description, in the order of a resolved recipe.
KEYS = {
    "extends": "one recipe to start from: a shipped name, or a path relative to this file",
    "import": "Python files beside the recipe, or modules, that register parts; imported before the recipe is checked",
    "name": "names the run folder; the file's name if not given",
    "method": "how to train; its defaults lie below every key of the recipe",
    "data": "the images, and how they are prepared",
    "generator": "translates images",
    "discriminator": "tells real images of the target domain from translated ones",
    "encoder": "gives the features that the contrastive loss compares",
    "sampler": "chooses where the contrastive loss looks",
    "augmentations": "change training images on the training device, in this order",
    "discriminator_augmentations": "change what the discriminator sees, real and translated, in this order",
    "objective": "the method's own settings: losses and their weights",
    "train": "the optimisation",
    "checkpoint": "what survives a crash",
    "evaluate": "picture grids and scores during training",
}

#: The lowest layer of every recipe.
DEFAULTS: dict[str, Any] = {
    "method": "qsattn",
    "data": {"type": "folders"},
    "generator": {"type": "resnet_9blocks"},
    "discriminator": {"type": "patchgan"},
    "encoder": {"type": "generator"},
    "sampler": {"type": "random"},
    "augmentations": [],
    "discriminator_augmentations": [],
    "objective": {},
    "train": {},
    "checkpoint": {},
    "evaluate": {},
}

#: The keys of ``train`` that say its length in epochs; a resolved recipe has ``steps``.
LENGTH = ("epochs", "images")

#: Arguments that a part gets from the training if its recipe does not set them.
INJECTED = {
    "generator": ("in_channels", "out_channels"),
    "discriminator": ("in_channels", "size"),
    "encoder": ("generator", "in_channels", "target_channels", "size"),
}


def absolute(path: Path) -> Path:
    """Return the path with ``~`` expanded and made absolute against the current directory."""
    return Path(os.path.abspath(os.path.expanduser(path)))


AbsolutePath = Annotated[Path, AfterValidator(absolute)]


def _published(value: Any) -> Any:
    """Return the file of a published model for its name, where there is no file of that name."""
    if isinstance(value, str) and not os.path.isfile(value):
        from qsattn_plugin.registry.pretrained import entries, weights_file  # a fork's environment lacks what they need

        entry = entries().get(value.removeprefix("pretrained/"))
        try:
            return value if entry is None else str(weights_file(entry))
        except UserError as error:
            raise ValueError(str(error)) from error
    return value


#: A file with weights, or the name of a published model.
Weights = Annotated[AbsolutePath, BeforeValidator(_published, json_schema_input_type=Path)]


@dataclass(frozen=True)
class PartSpec:
    """A part by its registered name, with the arguments that the recipe gives."""

    type: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Section(BaseModel):
    """A section whose keys are fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


#: What ``data.range`` may be for a domain.
ValueRange = tuple[float, float] | Literal["dtype", "auto"]

#: A number of bands, or the number of one.
Band = Annotated[int, Field(ge=1, le=64)]


class Pipeline(Section):
    """The keys of ``data`` that every dataset has.

    Args:
        direction: AtoB translates images of A into B, BtoA the reverse.
        preprocess: What happens to a training image before it is cropped; CUT's and CycleGAN's modes.
        resize: Side (or width) in pixels to which images are resized; crop and none do not.
        crop: Side in pixels of the random square crop, a multiple of 4.
        random_crop: always, or until_decay: once the learning rate falls, images are resized to the crop itself, and
            so seen whole in mode resize_and_crop. As the code of CUT and QS-Attn does it; CycleGAN's crops to the end.
        channels: 1 is greyscale, 3 is RGB; with a range any number of bands up to 64. Or a mapping {A: ..., B: ...}.
        range: Values that become -1 and 1, for pictures of more than 8 bits or of other bands than grey and RGB: two
            numbers, dtype (the limits of the file's number type), or auto (measured on the training set once); or a
            mapping {A: ..., B: ...}. Null reads pictures of 8 bits.
    """

    direction: Literal["AtoB", "BtoA"] = "AtoB"
    preprocess: PreprocessMode = "resize_and_crop"
    resize: int = Field(286, ge=1)
    crop: int = Field(256, ge=1, validate_default=True)  # against the resize
    random_crop: Literal["always", "until_decay"] = "always"
    channels: Band | dict[Literal["A", "B"], Band] = 3
    range: ValueRange | dict[Literal["A", "B"], ValueRange | None] | None = None

    @field_validator("crop")
    @classmethod
    def _fits(cls, crop: int, info: ValidationInfo) -> int:
        mode, resize = info.data.get("preprocess", "none"), info.data.get("resize", crop)
        if "crop" in mode and crop % 4:
            raise ValueError(f"must be a multiple of 4, got {crop}")
        if mode.endswith("_and_crop") and crop > resize:
            raise ValueError(f"must be at most data.resize ({resize}), got a crop of {crop}; set both")
        return crop

    @field_validator("channels", "range")
    @classmethod
    def _of_both(cls, given: Any, info: ValidationInfo) -> Any:
        if isinstance(given, dict) and set(given) != {"A", "B"}:
            null = " (null reads 8 bits)" if info.field_name == "range" else ""
            raise ValueError(f"a mapping must have both A and B{null}, got {', '.join(given) or 'none'}")
        if info.field_name == "channels":
            a, b = (of_domain(given, domain) for domain in "AB")
            return a if a == b else {"A": a, "B": b}
        for one in given.values() if isinstance(given, dict) else (given,):
            if isinstance(one, tuple) and not one[0] < one[1]:
                raise ValueError(f"must be two numbers, the lower first, got [{one[0]:g}, {one[1]:g}]")
        return given

    def ends(self, key: Literal["channels", "range"], back: bool = False) -> tuple[Any, Any]:
        """Return what a key says of the source and of the target domain; ``back``: of the translation back."""
        domains = "AB" if (self.direction == "AtoB") != back else "BA"
        value = getattr(self, key)
        return of_domain(value, domains[0]), of_domain(value, domains[1])


PIPELINE = tuple(Pipeline.model_fields)


class Data(Pipeline):
    """The resolved ``data`` section: the pipeline's keys, and the dataset as a part."""

    type: str
    arguments: dict[str, Any] = {}


class Train(Section):
    """The optimisation.

    Args:
        steps: Optimiser steps in all; or give ``epochs``.
        epochs: The length in epochs instead of steps: an epoch is max(|A|, |B|) images, of batch_size x accumulate a
            step. The resolved recipe has the steps.
        images: Images in an epoch; null counts those of the larger domain.
        decay_from: Step from which the learning rate falls linearly to zero at the last, or its share of all steps,
            such as 0.75; null is half the steps.
        batch_size: Images of each domain that go through the networks together.
        accumulate: Such batches a step, one after the other; their gradients are averaged.
        lr: Adam's learning rate.
        betas: Adam's decay rates of the gradient's mean and square.
        precision: Number format of the networks' arithmetic; weights stay fp32. auto is bf16 (on some GPUs fp16) where
            the device computes that in hardware, else fp32; a run that goes on keeps what it began with.
        channels_last: Keep a position's channels side by side in memory; null is what was measured to be faster on the
            device.
        compile: Let torch.compile fuse the networks; the first steps take minutes. From PyTorch 2.11 on.
        seed: Every random draw of the run follows from it.
        ema: Decay of the averaged generator a step; 0 switches averaging off.
        init_from: Checkpoint or weights file to start from, or a published model's name (horse2zebra). A checkpoint
            brings its discriminator; from a file without one, a trained generator forgets much within some hundred
            steps.
        device: auto takes what the machine has; or a torch device such as cpu, cuda:1 or mps.
        log_every: Steps between two lines of the log; null follows from the steps, and is at most 50.
    """

    steps: int = Field(ge=1)
    epochs: float | None = Field(None, gt=0, exclude=True)
    images: int | None = Field(None, ge=1, exclude=True)
    decay_from: int | Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: int = Field(1, ge=1)
    accumulate: int = Field(1, ge=1)
    lr: float = Field(2e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.999)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool | None = None
    compile: bool = False
    seed: int = Field(0, ge=0, lt=2**63)
    ema: float = Field(0.0, ge=0, lt=1)
    init_from: Weights | None = None
    device: str = "auto"
    log_every: int | None = Field(None, ge=1)

    @property
    def step_images(self) -> int:
        """The images of each domain that a step takes, on each process."""
        return self.batch_size * self.accumulate

    @property
    def decay_step(self) -> int:
        """The step from which the learning rate falls."""
        if self.decay_from is None:
            return self.steps // 2
        return round(self.decay_from * self.steps) if isinstance(self.decay_from, float) else self.decay_from

    def rate_factor(self, step: int) -> float:
        """Return the factor on the learning rate at a step: 1 until ``decay_from``, then falling linearly to 0."""
        start = self.decay_step
        return 1.0 if step < start else max(0.0, 1 - (step - start) / max(1, self.steps - start))

    @property
    def log_interval(self) -> int:
        """Steps between two lines of the log."""
        return self.log_every or _interval(self.steps / 200, 50)

    @field_validator("decay_from")
    @classmethod
    def _step(cls, start: int | float | None, info: ValidationInfo) -> int | float | None:
        steps = info.data.get("steps")
        if steps is None or not isinstance(start, int):  # the steps are wrong themselves, and said so
            return start
        if start < 0:
            raise ValueError(f"must be at least 0, got {start}")
        if start > steps:
            hint = "set both, or decay_from to null for half of the steps"
            raise ValueError(f"must be at most train.steps ({steps}), got {start}; {hint}")
        return start

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        known = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla")
        name = device.partition(":")[0]
        if name not in known or (name == "auto" and device != name) or not re.fullmatch(r"[a-z]+(:[0-9]+)?", device):
            raise ValueError(f"must be auto or a torch device such as cuda:0, got {device!r}{nearest(name, known)}")
        return device


def _interval(wanted: float, most: int) -> int:
    """Return the largest of 1, 2, 5, 10, 20, ... up to ``wanted`` and ``most``, at least 1."""
    scale = 10 ** int(math.log10(max(1, wanted)))
    return min(most, scale * max(n for n in (1, 2, 5) if n * scale <= max(1, wanted)))


class Checkpoint(Section):
    """What survives a crash.

    Args:
        every: Steps between two checkpoints.
        minutes: Minutes after which one is written in between, so that a crash costs no more than that.
        keep: How many of the latest checkpoints stay on disk.
    """

    every: int = Field(5000, ge=1)
    minutes: float = Field(10.0, gt=0)
    keep: int = Field(2, ge=1)


class Features(Section):
    """What turns images into the vectors that a score compares.

    Args:
        model: A timm name.
        weights: A file with the model's weights; without it timm downloads them or takes them from its cache.
    """

    model: str
    weights: AbsolutePath | None = None


def _named(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class Evaluate(Section):
    """Picture grids and scores during training.

    Args:
        every: Steps between two evaluations; null follows from the steps: 6 to 15 evaluations, or one in 5000 steps.
        images: How many test images are translated for the score, and how many of the target's swd compares them
            with; null takes all.
        grid: Images in the picture grid.
        bands: Of images with more than three channels, the three that grids, maps and scores show, counted from 1; null
            is the first three.
        kid: Score translations by their kernel distance to the target's test images, on the features of this timm
            model: its name, or a mapping of model and weights, a file. Null does not.
    """

    every: int | None = Field(None, ge=1)
    images: int | None = Field(128, ge=1)
    grid: int = Field(8, ge=1)
    bands: tuple[Band, Band, Band] | None = None
    kid: Annotated[Features | None, BeforeValidator(_named, json_schema_input_type=str | Features | None)] = None

    def interval(self, steps: int) -> int:
        """Return the steps between two evaluations of a training of so many steps."""
        return self.every or _interval(steps / 6, 5000)

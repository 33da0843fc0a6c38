"""A trial of a recipe before it is trained: two steps and an evaluation on this device, timed."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.data.store import BUDGET
from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.describe import describe
from qsattn_plugin.registry.recipe import Recipe, RecipeError, load_recipe, shipped_recipes
from qsattn_plugin.registry.recipe.schema import PARTS
from qsattn_plugin.text import duration
from qsattn_plugin.training.building import part_error
from qsattn_plugin.training.evaluate import Evaluator
from qsattn_plugin.training.finite_guard import NonFiniteLossError
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.training.methods.base import Method
from qsattn_plugin.training.session import Session

#: Images of each domain that a trial reads, and that it evaluates.
IMAGES, EVALUATED = 8, 2
_HOUR = 3600


@dataclass(frozen=True)
class Trial:
    """What a training will take, measured.

    Attributes:
        step: seconds of a step.
        evaluation: seconds of an evaluation.
        training: seconds of the whole training.
        memory: bytes of the device's memory; on a CPU, of the process, with all images.
        notes: what is to be said about the images, in sentences.
    """

    step: float
    evaluation: float
    training: float
    memory: int
    notes: tuple[str, ...] = ()


def try_recipe(session: Session) -> Trial:
    """Take two steps of a new session and evaluate twice, on a few of the recipe's images.

    Raises:
        RecipeError: a part fails on the images, an evaluation is not possible, a loss is not finite.
        UserError: the images cannot be read, or there is not enough memory.
    """
    recipe, device = session.recipe, session.device
    _reset_peak(device)
    try:
        loader = TrainingLoader(recipe, device, multiple=session.multiple, limit=IMAGES)
        losses = session.advance(loader, observe=True)  # this step also allocates, and chooses kernels
        bad = [name for name, loss in losses.items() if "/" not in name and not loss.isfinite()]
        if bad:
            raise recipe.error("train.lr", f"the loss {', '.join(bad)} is NaN or infinite at the first step")
        step = _seconds(lambda: session.advance(loader), device)
        evaluator = Evaluator(recipe, loader, EVALUATED)
        # The first also draws, reads or computes what all share.
        first, evaluation = (
            _seconds(lambda: evaluator(next(iter(session.translators().values()))), device) for _ in range(2)
        )
    except RecipeError:
        raise
    except NonFiniteLossError as error:
        raise recipe.error("train.lr", "the translations are NaN or infinite after two steps") from error
    except Exception as error:
        raise _explained(error, session) from error
    counts = recipe.count_images(*(f"train{domain}" for domain in loader.domains), evaluator.source)
    memory = _peak(device)
    if device.type == "cpu":  # where all images lie, decoded
        stores = zip(loader.domains, loader.stores.values(), strict=True)
        memory += sum(min(BUDGET, s.nbytes // len(s) * counts[f"train{domain}"]) for domain, s in stores)
    steps, images = recipe.train.steps, recipe.evaluate.images or math.inf
    shared = max(0.0, first - evaluation)
    evaluation *= min(images, counts[evaluator.source]) / len(evaluator.images)
    training = step * steps + shared + evaluation * math.ceil(steps / recipe.evaluate.interval(steps))
    return Trial(step, evaluation, training, memory, tuple(loader.notes))


def describe_trial(session: Session, trial: Trial) -> str:
    """Return what a trial found, in sentences: time, memory, and what would fit into an hour."""
    recipe = session.recipe
    number = f"{trial.step:.3g} s a step" if trial.step >= 0.1 else f"{1000 * trial.step:.3g} ms a step"
    what = f"{session.precision} on {session.device}, {trial.memory / 1e9:.1f} GB of memory"
    text = f"It takes about {duration(trial.training)} here: {number}, {recipe.train.steps} steps ({what})."
    if trial.training <= _HOUR:
        return text
    steps = math.floor(_HOUR / trial.training * recipe.train.steps)
    if steps:
        text += f" An hour is {steps} of them (-s train.steps={steps})."
    if quick := quicker_recipes(session, trial):
        names = ", ".join(f"{name} ({duration(seconds)})" for name, seconds in quick.items())
        text += f" Recipes that fit an hour here, by their generators' multiply-adds: {names}."
    return text


def quicker_recipes(session: Session, trial: Trial) -> dict[str, float]:
    """Return the shipped recipes that take less than an hour, with their seconds, the quickest first.

    They are not tried: a step's time is taken to be in proportion to the multiply-adds of its generator on its images.
    Of recipes with equal generators and images only the first is named.
    """
    if not session.recipe.data.preprocess.endswith("crop"):
        return {}  # pictures of any size
    per_second = _multiply_adds(session.recipe) / trial.step
    found: dict[str, float] = {}
    seen = set()
    for name in shipped_recipes():
        recipe = load_recipe(name)
        same = repr((recipe.generator, recipe.data.crop))
        if same not in seen and name != session.recipe.name:
            seen.add(same)
            seconds = _multiply_adds(recipe) * recipe.train.steps / per_second
            found |= {name: seconds} if seconds <= _HOUR else {}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _multiply_adds(recipe: Recipe) -> float:
    """Return the multiply-adds of the generator on the images of a step."""
    images = recipe.train.step_images
    source, target = recipe.data.ends("channels")
    generator = recipe.build("generator", in_channels=source, out_channels=target)
    return describe(generator, recipe.data.crop, source).multiply_adds * images


def _explained(error: Exception, session: Session) -> Exception:
    """Return an error of a trial as one of the recipe, if it can be said which part raised it; else the error."""
    if out_of_memory(error):
        return session.memory_error()
    section, shape = _failed_part(error, session.method)
    if section is not None:
        return part_error(session.recipe, section, error, shape, "data")
    return session.recipe.error(getattr(error, "key", "data"), str(error)) if isinstance(error, UserError) else error


def _failed_part(error: Exception, method: Method) -> tuple[str | None, Sequence[int]]:
    """Return the section of the innermost part that an error came through, and the shape of the images it had got."""
    sections = {id(network): name.split("_")[0] for name, network in method.named_children()}
    sections[id(getattr(method, "sampler", None))] = "sampler"
    section: str | None = None
    shape: Sequence[int] = (0, 0, 0, 0)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        here = sections.get(id(frame.f_locals.get("self", method)))
        if here in PARTS and here != section:
            section = here
            shape = next((v.shape for v in frame.f_locals.values() if isinstance(v, Tensor) and v.ndim == 4), shape)
    return section, shape


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Return the largest number of bytes in use since :func:`_reset_peak`, of a GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

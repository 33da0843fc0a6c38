"""A training from Python: build it, fit it, translate with it, look at it in a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from qsattn_plugin.data.raster import Raster
from qsattn_plugin.data.unreadable import UnreadableImage
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.registry.yaml_lines import write
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.progress import TrainingEvent
from qsattn_plugin.training.report.history import numbers
from qsattn_plugin.training.report.pictures import encode_picture
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from qsattn_plugin.translation.load import load
from qsattn_plugin.translation.translator import Translator

__all__ = ["Training", "build"]

#: A picture, or its file.
Picture = Image.Image | str | Path


class Training(Run):
    """A run with what the commands do, :meth:`fit` and :meth:`translate`; ``open`` finds one that was built before."""

    def fit(
        self,
        max_steps: int | None = None,
        time_limit: float | None = None,
        on_event: Callable[[TrainingEvent], None] = lambda event: None,
    ) -> dict[str, float]:
        """Train to the last step, from the newest checkpoint on; return the scores of the last evaluation.

        The arguments and errors are those of :func:`qsattn_plugin.training.loop.fit`. Ctrl-C (in a notebook: interrupt)
        finishes the step, saves, and raises; the same call carries on.
        """
        return fit(self, max_steps=max_steps, time_limit=time_limit, on_event=on_event)

    def load(self, best: bool = False, device: str = "cpu") -> Translator:
        """Return the generator of the newest checkpoint, or of that with the best score."""
        return load(f"{self.folder}@best" if best else self.folder, device)

    def translate(
        self, pictures: Picture | Iterable[Picture], best: bool = False, **options: Any
    ) -> Image.Image | Raster | list[Image.Image | Raster]:
        """Translate pictures, or picture files: one for one, otherwise a list.

        Where the run has a value range (``data.range``), a :class:`~qsattn_plugin.data.raster.Raster` for each.

        Args:
            pictures: PIL images of any mode and size, or paths; of a domain with a value range paths alone.
            best: by the checkpoint with the best score instead of the newest.
            options: of :meth:`qsattn_plugin.translation.translator.Translator.translate`, such as ``at``.
        """
        one = isinstance(pictures, (Image.Image, str, Path))
        given: list[Any] = [pictures] if one else list(pictures)  # type: ignore[arg-type]  # mypy does not narrow by a name
        translator = self.load(best)
        read: list[Any] = [translator.read(p) if isinstance(p, (str, Path)) else p for p in given]
        if any(translator.ranges):
            made: list[Any] = [translator.translate_values(picture, **options) for picture in read]
        else:
            made = translator.translate(read, **options)
        return made[0] if one else made

    def _repr_html_(self) -> str:
        """Return the run for a notebook: how far it is, its newest losses and scores, and its newest pictures."""
        recipe, steps = self.recipe, self.checkpoints.steps()
        rows = {"folder": str(self.folder), "steps": f"{steps[-1] if steps else 0:,} of {recipe.train.steps:,}"}
        rows["method"] = f"{recipe.method}, generator {recipe.generator.type}, sampler {recipe.sampler.type}"
        scores = numbers(self.last("evaluate").get("scores"))
        rows |= {f"{name} (last evaluation)": f"{value:.4g}" for name, value in scores.items() if value is not None}
        table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
        text = f"<table><caption>{escape(recipe.name)}</caption>{table}</table>"
        grids = sorted(self.grids.glob("step-*.png"))
        with contextlib.suppress(IndexError, UnreadableImage):
            picture = encode_picture(grids[-1], 960)
            about = f"Test pictures and their translations at {grids[-1].stem.replace('-', ' ')}"
            text += f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{escape(about)}">'
        return text


def build(
    recipe: str | Path, *, folder: str | Path | None = None, overwrite: bool = False, **settings: Any
) -> Training:
    """Check a recipe, build its parts once, and make its run's folder; ``qsattn build`` without the trial.

        run = qsattn_plugin.build("toy", name="mine", train={"steps": 900}, sampler="qsattn_local")

    Args:
        recipe: a shipped recipe's name, or a YAML file.
        folder: the run's folder; ``runs/<name>`` by default.
        overwrite: delete an earlier training in it.
        settings: keys of the recipe, over what it says; mappings merge with the recipe's, as where one extends it.

    Raises:
        RecipeError: a key or a value is wrong; it names the key.
        UserError: the folder holds a training.
    """
    overrides = []
    for key, value in settings.items():
        try:
            overrides.append(f"{key}={write(value)}")
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    loaded = load_recipe(recipe, overrides)
    place = None if folder is None else Path(folder)
    Training.at(loaded, place).check(overwrite)
    Session(loaded)  # finds what does not fit together before a folder is made
    return Training.create(loaded, place, overwrite)

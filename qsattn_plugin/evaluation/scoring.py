"""Scores of a model's translations, or of any folder of pictures: what is wanted, what that needs, and the figures."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qsattn_plugin import __version__
from qsattn_plugin.data.images import show
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.evaluation import distributions, pairs
from qsattn_plugin.evaluation.features import Extractor, extract, load_extractor
from qsattn_plugin.evaluation.fidelity import USUAL, Inception, Lpips
from qsattn_plugin.evaluation.figures import Figure, Scores
from qsattn_plugin.evaluation.labels import KINDS, Kind, LabelMaps, of_kind, scene
from qsattn_plugin.evaluation.pictures import Pictures, partners, translate_pictures
from qsattn_plugin.registry.pretrained import entries
from qsattn_plugin.translation.load import Translator, is_run, load

#: Metric -> what it is, and the folders that it needs beside the scored pictures.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fid": ("Frechet inception distance", ("real",)),
    "kid": ("kernel inception distance", ("real",)),
    "swd": ("sliced Wasserstein distance", ("real",)),
    "lpips": ("learned perceptual distance from the source", ("source",)),
    "background": ("change outside the masks", ("source", "masks")),
    "labels": ("pixel accuracy, class accuracy and mIoU of label maps", ("labels",)),
}

#: Begins a stage of work on so many pictures; what it gives is called with how many more are done.
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def _silent(what: str, count: int) -> AbstractContextManager[Callable[[int], None]]:
    return contextlib.nullcontext(lambda done: None)


@dataclass
class Evaluation:
    """Scores of a model or a folder.

    Attributes:
        scored: a folder of pictures; or a run folder, weights file or published name, which translates ``source``.
        real: pictures of the target domain, for fid, kid and swd.
        source: what was or is to be translated, for lpips and background too. Pairs have the same names.
        masks: pictures with the names of the scored ones, white where a change is wanted.
        labels: true label maps.
        predicted: label maps that a segmentation network made of the scored pictures; without them the scored pictures
            are label maps themselves.
        metrics: names of :data:`METRICS`; None: all those that the given folders allow, without lpips.
        features: names of the extractor's features; None: all that it has, or 2048 of the usual Inception.
        extractor: ``module:callable``, see :func:`~qsattn_plugin.evaluation.features.load_extractor`; None: Inception.
        weights: a file of weights for the extractor, the usual one too.
        size: bring every picture to this height and width, a source before it is translated; None: as they are (swd:
            256).
        first: score so many pictures alone, the first by name.
        subsets: of kid.
        subset_size: of kid, see :func:`~qsattn_plugin.distances.kernel_distances`.
        seed: of kid's subsets and of swd's patches and directions.
        label_kind: what the true label maps hold, see :class:`~qsattn_plugin.evaluation.labels.LabelMaps`.
        predicted_kind: the same of the predicted ones.
        generator: which one of a model that has several.
        keep: a folder for the translations; None: they are not kept.
        batch: pictures at once.
        device: where networks run.
    """

    scored: str
    real: Path | None = None
    source: Path | None = None
    masks: Path | None = None
    labels: Path | None = None
    predicted: Path | None = None
    metrics: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    extractor: str | None = None
    weights: Path | None = None
    size: int | None = None
    first: int | None = None
    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020
    label_kind: Kind = "auto"
    predicted_kind: Kind = "auto"
    generator: str | None = None
    keep: Path | None = None
    batch: int = 8
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        for name in ("real", "source", "masks", "labels", "predicted", "weights", "keep"):
            if getattr(self, name) is not None:
                setattr(self, name, Path(getattr(self, name)))

    def run(self, stage: Stage = _silent) -> Scores:
        """Take the figures.

        Everything that can be wrong with what was asked is found before the first picture is translated.

        Raises:
            UserError: a metric, folder, file, extractor or partner is missing, or a picture cannot be read.
        """
        translator = None if _is_folder(self.scored) else self._load()
        metrics = self._metrics(translator)
        folders = {
            name: Pictures.find(getattr(self, name), self.size)
            for name in ("real", "source", "masks", "labels", "predicted")
            if getattr(self, name) is not None
        }
        for name, kind in (("labels", self.label_kind), ("predicted", self.predicted_kind)):
            if name in folders:
                folders[name] = of_kind(folders[name], kind)
        given = Pictures.find(self.source if translator else self.scored, self.size, self.first)
        self._match(given, folders, metrics)
        extractor = self._extractor() if {"fid", "kid"} & set(metrics) else None
        if extractor is not None and self.extractor:  # what it has is known once it was called
            extract(extractor, replace(given, paths=given.paths[:1]), self.features)
        lpips = Lpips(self.device) if "lpips" in metrics else None
        scores = Scores(self._about(translator))
        with contextlib.ExitStack() as stack:
            if translator is not None:
                out = self.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qsattn-scores-")))
                with stage("translating", len(given)) as done:
                    others = [path for pictures in folders.values() for path in pictures.paths]
                    given = translate_pictures(translator, given, out, done, self.batch, others)
            self._figures(scores, given, folders, metrics, extractor, lpips, stage)
        order = {name: place for place, name in enumerate(metrics)}
        scores.figures.sort(key=lambda figure: order[_metric_of(figure.name)])
        return scores

    def _figures(
        self,
        scores: Scores,
        given: Pictures,
        folders: dict[str, Pictures],
        metrics: tuple[str, ...],
        extractor: Extractor | None,
        lpips: Lpips | None,
        stage: Stage,
    ) -> None:
        figures = scores.figures
        if extractor is not None:
            about = self._about_extractor(extractor)
            found, warnings = distributions.inception_figures(
                self, metrics, extractor, about, given, folders["real"], stage
            )
            figures += found
            scores.warnings += warnings
        if "swd" in metrics:
            figures += distributions.texture_figure(given, folders["real"], self.seed, stage)
        if lpips is not None:
            figures.append(pairs.perceptual_figure(lpips, given, folders["source"], stage))
        if "background" in metrics:
            figures.append(pairs.background_figure(given, folders["source"], folders["masks"], stage))
        if "labels" in metrics:
            predicted = LabelMaps(_whole(folders.get("predicted", given)), self.predicted_kind)
            figures += pairs.label_figures(predicted, LabelMaps(_whole(folders["labels"]), self.label_kind), stage)

    def _load(self) -> Translator:
        path = Path(self.scored)
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        if path.name != self.scored and not path.exists() and "@" not in path.name and nearest(path.name, beside):
            # A path, not a name: what lies beside it is a better guess than the names of models.
            raise UserError(f"there is no folder, run or file {show(path)}{nearest(path.name, beside)}")
        return load(self.scored, self.device, self.generator)

    def _metrics(self, translator: Translator | None) -> tuple[str, ...]:
        """The metrics wanted, in order, once each; an error where a folder that they need was not given."""
        for kind in (self.label_kind, self.predicted_kind):
            if kind not in KINDS:
                raise UserError(f"there are no label maps of kind {kind!r}{nearest(kind, KINDS)} ({', '.join(KINDS)})")
        if translator is not None and self.source is None:
            raise UserError(f"{self.scored} is a model: it needs --source, a folder of pictures to translate")
        for given, needed in (("masks", "source"), ("predicted", "labels")):
            if getattr(self, given) and not getattr(self, needed):
                raise UserError(f"--{given} needs --{needed}, a folder, to compare with")
        allowed = [name for name, (_, needs) in METRICS.items() if all(getattr(self, need) for need in needs)]
        wanted = self.metrics or tuple(name for name in allowed if name != "lpips")
        if not wanted:
            raise UserError("there is nothing to compare with: give --real, a folder of pictures of the target domain")
        for name in wanted:
            if name not in METRICS:
                raise UserError(f"there is no metric {name!r}{nearest(name, METRICS)} ({', '.join(METRICS)})")
            for need in METRICS[name][1]:
                if not getattr(self, need):
                    raise UserError(f"{name} needs --{need}, a folder")
        return tuple(dict.fromkeys(wanted))

    def _match(self, given: Pictures, folders: dict[str, Pictures], metrics: Iterable[str]) -> None:
        for name in metrics:
            for need in METRICS[name][1]:
                if need in ("source", "masks"):
                    partners(given, folders[need])
                elif need == "labels":
                    partners(folders.get("predicted", given), folders[need], scene)
                elif need == "real" and min(len(given), len(folders[need])) < 2:
                    small = min((given, folders[need]), key=len)
                    raise UserError(f"{name} needs at least two pictures of each kind; {show(small.folder)} has one")

    def _extractor(self) -> Extractor:
        if self.extractor is not None:
            return load_extractor(self.extractor, self.weights, self.device)
        return Inception(self.features or (USUAL,), self.weights, self.device)

    def _about_extractor(self, extractor: Extractor) -> dict[str, Any]:
        weights = extractor.weights if isinstance(extractor, Inception) else self.weights
        about: dict[str, Any] = {"extractor": self.extractor or "torch-fidelity's inception-v3-compat"}
        if weights is not None:
            with open(weights, "rb") as file:
                about |= {"weights": weights.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()[:16]}
        return about

    def _about(self, translator: Translator | None) -> dict[str, Any]:
        about: dict[str, Any] = {"scored": self.scored, "kind": "model" if translator else "folder"}
        if translator is not None:
            document = translator.document
            about |= {"step": document.get("step"), "generator": self.generator} if document else {}
        about |= {
            name: str(getattr(self, name))
            for name in ("real", "source", "masks", "labels", "predicted")
            if getattr(self, name) is not None
        }
        about["first"] = self.first
        return about | {"device": str(self.device), "qsattn_plugin": __version__, "torch": torch.__version__}


def _whole(pictures: Pictures) -> Pictures:
    """Label maps are read at their own size: their numbers must not be mixed."""
    return Pictures(pictures.folder, pictures.paths)


def _is_folder(scored: str) -> bool:
    """Tell a folder of pictures from a run's folder and from what is no folder.

    Raises:
        UserError: it is both a folder of pictures and the name of a published model.
    """
    path = Path(scored)
    if not path.is_dir() or is_run(path):
        return False
    if scored in entries():
        raise UserError(f"{scored} is a folder here, and a published model: write ./{scored} or pretrained/{scored}")
    return True


def _metric_of(figure: str) -> str:
    name = figure.partition("-")[0]
    return name if name in METRICS else "labels"


__all__ = ["METRICS", "Evaluation", "Figure", "Scores", "Stage"]

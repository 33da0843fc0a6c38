"""Scores of a model's translations, or of any folder of pictures: what is wanted, what that needs, and the figures."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qsattn_plugin import __version__
from qsattn_plugin.data.images import read_first, show
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.evaluation.features import Extractor, FeatureSets, extract, load_extractor
from qsattn_plugin.evaluation.fidelity import USUAL, Inception, Lpips, library
from qsattn_plugin.evaluation.figures import Figure, Scores
from qsattn_plugin.evaluation.labels import KINDS, Kind, LabelMaps, of_kind, scene
from qsattn_plugin.evaluation.pictures import Pictures, Stage, paired, partners, translate_pictures
from qsattn_plugin.registry import Part, PartError, find
from qsattn_plugin.registry.pretrained import entries
from qsattn_plugin.storage.download import checksum
from qsattn_plugin.translation.load import is_run, load
from qsattn_plugin.translation.translator import Translator

#: What is taken where no metric is named, in this order, as far as the given folders allow.
DEFAULT = ("fid", "kid", "swd", "background", "labels")

#: What a metric may ask for by the name of an argument, and the folder that it then needs. What each is:
#: :mod:`qsattn_plugin.evaluation.metrics`.
INPUTS: dict[str, str | None] = {
    **{name: name for name in ("real", "source", "masks", "labels")},
    "features": "real",
    **dict.fromkeys(("scored", "predicted", "lpips_network", "stage", "warn")),
    **dict.fromkeys(("seed", "subsets", "subset_size", "batch", "device")),
}

#: The folders of pictures that an evaluation may have beside the scored ones.
_FOLDERS = ("real", "source", "masks", "labels", "predicted")


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
        metrics: names of registered metrics; None: those of :data:`DEFAULT` that the given folders allow.
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
        overwrite: replace pictures in it.
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
    overwrite: bool = False
    batch: int = 8
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self.scored = str(self.scored)
        for name in (*_FOLDERS, "weights", "keep"):
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
        given_folders = {name: folder for name in _FOLDERS if (folder := getattr(self, name)) is not None}
        reads: dict[str, Callable[[Path], Image.Image]] = {}
        if translator is not None and any(translator.ranges):
            reads = {"source": translator.shown, "real": partial(translator.shown, made=True)}
        folders = {
            name: Pictures.find(folder, self.size, shown=reads.get(name, read_first))
            for name, folder in given_folders.items()
        }
        for name, kind in (("labels", self.label_kind), ("predicted", self.predicted_kind)):
            if name in folders:
                folders[name] = of_kind(folders[name], kind)
        scored = self.source if translator and self.source else self.scored
        given = Pictures.find(scored, self.size, self.first, reads.get("source", read_first))
        others = [path for pictures in folders.values() for path in pictures.paths]
        folders |= self._match(given, folders, metrics)
        wanted = {name for part in metrics for name in self._taken(part)}
        extractor = self._extractor("features" in wanted)
        if extractor is not None and self.extractor:  # what it has is known once it was called
            extract(extractor, replace(given, paths=given.paths[:1]), self.features)
        lpips = Lpips(torch.device(self.device)) if "lpips_network" in wanted else None
        scores = Scores(self._about(translator))
        with contextlib.ExitStack() as stack:
            if translator is not None:
                out = self.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qsattn-scores-")))
                with stage("translating", len(given)) as done:
                    given = translate_pictures(translator, given, out, done, self.batch, others, self.overwrite)
            makers: dict[str, Callable[[], Any]] = {
                "features": lambda: self._features(extractor, given, folders["real"], stage),
                "labels": lambda: LabelMaps(_whole(folders["labels"]), self.label_kind),
                "predicted": lambda: LabelMaps(_whole(folders.get("predicted", given)), self.predicted_kind),
            }
            inputs = vars(self) | folders | {"scored": given, "lpips_network": lpips, "stage": stage}
            inputs |= {"warn": scores.warnings.append} | {name: makers[name]() for name in makers if name in wanted}
            for part in metrics:
                found = part.target(**{name: inputs[name] for name in self._taken(part)})
                figures = [found] if isinstance(found, Figure) else found
                if not isinstance(figures, list) or not all(isinstance(figure, Figure) for figure in figures):
                    raise PartError(f"metric {part.name!r} must return a Figure or a list of them, got {found!r}")
                scores.figures += figures
        return scores

    def _load(self) -> Translator:
        path = Path(self.scored)
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        if path.name != self.scored and not path.exists() and "@" not in path.name and nearest(path.name, beside):
            # A path, not a name: what lies beside it is a better guess than the names of models.
            raise UserError(f"there is no folder, run or file {show(path)}{nearest(path.name, beside)}")
        return load(self.scored, self.device, self.generator)

    def _metrics(self, translator: Translator | None) -> list[Part]:
        """The metrics wanted, in order, once each; an error where a folder that they need was not given."""
        for kind in (self.label_kind, self.predicted_kind):
            if kind not in KINDS:
                raise UserError(f"there are no label maps of kind {kind!r}{nearest(kind, KINDS)} ({', '.join(KINDS)})")
        if translator is not None and self.source is None:
            raise UserError(f"{self.scored} is a model: it needs --source, a folder of pictures to translate")
        for given in ("keep", "generator") if translator is None else ():
            if getattr(self, given):
                raise UserError(f"--{given} is for a model's translations; {self.scored} is a folder of pictures")
        for given, needed in (("masks", "source"), ("predicted", "labels")):
            if getattr(self, given) and not getattr(self, needed):
                raise UserError(f"--{given} needs --{needed}, a folder, to compare with")
        default = [name for name in DEFAULT if not self._lacking(find("metric", name))]
        if not (self.metrics or default):
            raise UserError("there is nothing to compare with: give --real, a folder of pictures of the target domain")
        found = []
        for name in dict.fromkeys(self.metrics or default):
            found.append(find("metric", name))
            for need in self._lacking(found[-1]):
                if need in INPUTS:
                    raise UserError(f"{name} needs --{INPUTS[need]}, a folder")
                what = f"metric {name!r} asks for {need!r}, which no evaluation has{nearest(need, INPUTS)}"
                raise PartError(f"{what} (there are {', '.join(INPUTS)})", need)
        return found

    def _taken(self, part: Part) -> list[str]:
        """Return the names of a metric's arguments that this evaluation has values for."""
        names = [name for name in part.signature.parameters if name in INPUTS]
        return [name for name in names if (folder := INPUTS[name]) is None or getattr(self, folder)]

    def _lacking(self, part: Part) -> list[str]:
        """Return the names of a metric's arguments that have no default and that this evaluation has no values for."""
        taken = self._taken(part)
        return [n for n, p in part.signature.parameters.items() if p.default is p.empty and n not in taken]

    def _match(self, given: Pictures, folders: dict[str, Pictures], metrics: Iterable[Part]) -> dict[str, Pictures]:
        """Return sources and masks in the order of the given pictures; raise where pictures or partners are missing."""
        matched = {}
        for part in metrics:
            for need in (INPUTS[name] for name in self._taken(part)):
                if need in ("source", "masks"):
                    matched[need] = paired(given, folders[need])
                elif need == "labels":
                    partners(folders.get("predicted", given), folders[need], scene)
                elif need == "real" and len(small := min((given, folders[need]), key=len)) < 2:
                    what = f"{part.name} needs at least two pictures of each kind"
                    raise UserError(f"{what}; of {show(small.folder)} there is one")
        return matched

    def _extractor(self, wanted: bool) -> Extractor | None:
        if not wanted:
            given = {"features": self.features, "extractor": self.extractor, "extractor-weights": self.weights}
            for option in (name for name, value in given.items() if value):
                raise UserError(f"--{option} is for metrics of features, such as fid and kid, and none is wanted")
            return None
        device = torch.device(self.device)
        if self.extractor is not None:
            return load_extractor(self.extractor, self.weights, device)
        return Inception(self.features or (USUAL,), self.weights, device)

    def _features(self, extractor: Extractor | None, given: Pictures, real: Pictures, stage: Stage) -> FeatureSets:
        assert extractor is not None  # made where features are wanted
        found = []
        for what, pictures in (("scored", given), ("real", real)):
            with stage(f"features of the {what} pictures", len(pictures)) as done:
                found.append(extract(extractor, pictures, self.features, self.batch, done))
        resize = f"{given.resize}, then by the extractor: {getattr(extractor, 'resize', 'it does not say how')}"
        published = isinstance(extractor, Inception)
        formulas = f"torch-fidelity {library().__version__}" if published else "qsattn_plugin"
        settings = self._about_extractor(extractor) | {"formulas": formulas}
        scored, of_real = found
        return FeatureSets(scored, of_real, {"scored": len(given), "real": len(real)}, resize, settings, published)

    def _about_extractor(self, extractor: Extractor) -> dict[str, Any]:
        weights = extractor.weights if isinstance(extractor, Inception) else self.weights
        about: dict[str, Any] = {"extractor": self.extractor or "torch-fidelity's inception-v3-compat"}
        if weights is not None:
            about |= {"weights": weights.name, "sha256": checksum(weights)[:16]}
        return about

    def _about(self, translator: Translator | None) -> dict[str, Any]:
        about: dict[str, Any] = {"scored": self.scored, "kind": "model" if translator else "folder"}
        if translator is not None:
            document = translator.document
            about |= {"step": document.get("step"), "generator": self.generator} if document else {}
        about |= {name: str(folder) for name in _FOLDERS if (folder := getattr(self, name)) is not None}
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


__all__ = ["DEFAULT", "INPUTS", "Evaluation", "Figure", "Scores", "Stage"]

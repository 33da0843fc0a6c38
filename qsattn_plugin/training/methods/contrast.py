"""The contrastive terms of an objective: what an image and its translation are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from qsattn_plugin.attention.routes import Route
from qsattn_plugin.errors import UserError
from qsattn_plugin.losses import ContrastiveObjective, Pair
from qsattn_plugin.registry import PartError, create_nested, find
from qsattn_plugin.training.methods.adversary import Adversary
from qsattn_plugin.training.methods.base import Parts

__all__ = ["Contrast", "Objectives", "Translated"]


class Translated(NamedTuple):
    """An image and what one pass of the generator made of it."""

    source: Tensor
    image: Tensor
    #: Features of the source at the encoder's taps.
    features: list[Tensor]
    #: Outputs of the layers that objectives ask for, by index.
    passed: dict[int, Tensor]
    mirrored: bool = False


class Objectives(nn.ModuleList):
    """The contrastive objectives that a recipe names, with their weights.

    Args:
        spec: a registered name, or ``{"type": name, "weight": 1.0, argument: value}``, or a list of these.
        shared: values such as ``temperature``, for the objectives that take them and do not set them.

    Raises:
        PartError: an objective is unknown, takes other arguments, or is not contrastive.
    """

    def __init__(self, spec: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]], **shared: Any):
        super().__init__()
        specs: Sequence[str | Mapping[str, Any]] = [spec] if isinstance(spec, (str, Mapping)) else spec
        named: list[dict[str, Any]] = [{"type": s} if isinstance(s, str) else dict(s) for s in specs]
        if not named:
            raise PartError("nce: names no objective; to train without one, set nce_weight to 0", "nce")
        #: Registered name, name in the log, weight, and the argument that names it, of each.
        self.kinds = kinds = [str(each.get("type", "")) for each in named]
        self.names = [f"{kind}_{i}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)]
        self.weights: list[float] = [each.pop("weight", 1.0) for each in named]
        self.places = ["nce"] if specs is not spec else [f"nce.{index}" for index in range(len(named))]
        for place, kind, arguments in zip(self.places, kinds, named, strict=True):
            objective = create_nested("objective", arguments, place, **shared)
            if not isinstance(objective, ContrastiveObjective):
                raise PartError(f"{place}: the objective {kind!r} is not contrastive", place)
            self.append(objective)

    def __iter__(self) -> Iterator[ContrastiveObjective]:  # type: ignore[override]
        return cast(Iterator[ContrastiveObjective], super().__iter__())

    @property
    def identity(self) -> bool:
        """Whether an objective compares images of the target domain with their translations."""
        return any(objective.identity for objective in self)

    @property
    def layers(self) -> list[int]:
        """The generator's layers that objectives ask for."""
        return sorted({index for objective in self for index in objective.layers})

    def build(
        self, generator: nn.Module, encoder: Any, heads: nn.Module, parts: Parts, encoder_back: Any = None
    ) -> None:
        """Make the networks that the objectives own, and check that the sampler knows the layers that they look at.

        Args:
            generator: translates the source.
            encoder: encodes the source.
            heads: project the source's features.
            parts: makes the sampler.
            encoder_back: encodes translations; ``encoder`` does without it.

        Raises:
            PartError: an objective cannot be computed with these.
        """
        for kind, objective, where in zip(self.kinds, self, self.places, strict=True):
            objective.translated = (encoder_back or encoder).channels
            try:
                objective.build(generator, encoder, heads)
            except (UserError, ValueError) as error:
                argument, _, text = str(error).partition(": ")
                known = argument in find("objective", kind).signature.parameters
                at = f"{where}.{argument}" if known else where
                raise PartError(f"{at}: {text if known else error}", at) from error
            if objective.routed is not None:
                parts.sampler(objective.routed)

    def heads(self, channels: Sequence[int]) -> Sequence[int]:
        """Return the channels that heads are needed for."""
        return channels if any(objective.projects for objective in self) else ()

    def owned(self) -> list[nn.Module]:
        """Return the objectives that own something to train."""
        return [objective for objective in self if any(p.requires_grad for p in objective.parameters())]

    def set_progress(self, progress: float) -> None:
        """Tell the objectives which share of the training is done."""
        for objective in self:
            objective.progress = progress

    def after_step(self) -> None:
        """Let the objectives follow a step of the optimizers."""
        for objective in self:
            objective.after_step()


class _Passing:
    """Runs a generator, and keeps the outputs of some of its layers."""

    def __init__(self, generator: nn.Module, layers: Sequence[int]):
        self.generator, self.layers = generator, layers
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, taps: Sequence[int] = (), encode_only: bool = False) -> Any:
        if encode_only:
            return self.generator(x, taps=taps, encode_only=True)
        wanted = sorted({*taps, *self.layers})
        image, outputs = self.generator(x, taps=wanted)
        by_layer = dict(zip(wanted, outputs, strict=True))
        self.outputs = {index: by_layer[index] for index in self.layers}
        return (image, [by_layer[tap] for tap in taps]) if len(taps) else image


class Contrast:
    """Computes contrastive losses of one direction. It has no parameters of its own.

    Args:
        objectives: what compares.
        generator: translates the source.
        encoder: encodes the source.
        heads: project the source's features.
        sampler: chooses routes on the source's features.
        adversary: judges translations, for samplers that ask it.
        back: generator, encoder and heads of translations; those of the source without it.
    """

    def __init__(
        self,
        objectives: Objectives,
        generator: nn.Module,
        encoder: Any,
        heads: nn.Module,
        sampler: Any,
        adversary: Adversary,
        back: tuple[nn.Module, Any, nn.Module] | None = None,
    ):
        self.objectives, self.generator, self.encoder, self.heads = objectives, generator, encoder, heads
        self.sampler, self.adversary = sampler, adversary
        self.back = back or (generator, encoder, heads)

    def translate(self, source: Tensor, mirrored: bool = False) -> Translated:
        """Return the translation of ``source``, or of its mirror image, and the features of ``source``."""
        layers = self.objectives.layers
        passing = _Passing(self.generator, layers)
        generator: Any = passing if layers else self.generator
        if mirrored:
            # Features of the original, translation of its mirror image: one pass cannot give both.
            features = self.encoder.features(self.generator, source)
            image = generator(source.flip(-1))
        else:
            image, features = self.encoder.translate(generator, source)
        return Translated(source, image, features, passing.outputs, mirrored)

    def pair(
        self,
        made: Translated,
        draws: torch.Generator,
        log: dict[str, Tensor],
        name: str,
        target: Tensor | None = None,
        observe: bool = False,
        learning: bool = False,
    ) -> Pair:
        """Return the pair of an image and its translation; statistics of its routes are added to ``log``.

        Args:
            made: the image and its translation.
            draws: the generator of all random numbers.
            log: receives statistics.
            name: of the term, in the log.
            target: real images of the other domain.
            observe: also measure what costs time.
            learning: keep the positives' graph, whatever the objectives say.
        """
        generator, encoder, heads = self.back

        def choose(features: Sequence[Tensor], taps: Sequence[int | str], mirrored: bool) -> list[Route]:
            guided = getattr(self.sampler, "guided", False)
            scores = self.adversary.scores(made.image) if guided else None
            if scores is not None and made.mirrored != mirrored:
                scores = scores.flip(-1)
            asked = {"scores": scores} if guided else {}
            routes = self.sampler.choose(list(features), list(taps), generator=draws, observe=observe, **asked)
            for tap, route in zip(taps, routes, strict=True):
                for key, value in route.stats.items():
                    if observe or key == "nonfinite":
                        log[f"tap_{tap}/{name}/{key}" if name != "NCE" else f"tap_{tap}/{key}"] = value
            return routes

        return Pair(
            input=made.source,
            image=made.image,
            source=made.features,
            taps=list(self.encoder.taps),
            passed=made.passed,
            target=target,
            generator=self.generator,
            encode=lambda image: encoder.features(generator, image),
            encode_source=lambda image: self.encoder.features(self.generator, image),
            heads=self.heads,
            translation_heads=heads,
            choose=choose,
            draws=draws,
            mirrored=made.mirrored,
            detached=not learning and all(o.detach_positives for o in self.objectives),
        )

    def loss(
        self, pair: Pair, log: dict[str, Tensor], name: str, half: bool = False, identity: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the objectives, and the losses of their own networks; ``log`` gets the terms.

        Args:
            pair: what is compared.
            log: receives the terms, detached.
            name: of the term, in the log.
            half: objectives with an identity term have half of their weight in each of the two.
            identity: whether this is the identity term.
        """
        total = pair.image.new_zeros((), dtype=torch.float32)
        own = total
        logged: list[Tensor] = []
        terms = self.objectives
        for kind, weight, objective in zip(terms.names, terms.weights, terms, strict=True):
            if identity and not objective.identity:
                continue
            share = 0.5 if half and objective.identity else 1.0
            loss = objective.compare(pair)
            logged.append(weight * loss.detach())
            mine = f"{name}_{kind}" if len(terms) > 1 else name
            log[mine] = loss.detach()
            for key, value in pair.own.items():
                log[f"{mine}_{key}"] = value.detach()
                own = own + share * value
            pair.own.clear()
            total = total + share * weight * loss
        log[name] = torch.stack(logged).sum()
        return total, own

"""A table of the parts that a recipe builds."""

from __future__ import annotations

from typing import Any

from torch import nn

from qsattn_plugin.registry import find
from qsattn_plugin.training.building import augmentations
from qsattn_plugin.training.kid import check_kid
from qsattn_plugin.training.session import Session


def part_table(session: Session) -> list[tuple[str, str, str, str]]:
    """Return the parts of a session in rows of role, type, parameter count and summary, the header first.

    Raises:
        UserError: a part of the recipe that the session does not hold cannot be built.
    """
    recipe = session.recipe
    check_kid(recipe)
    dataset = recipe.build("data")
    augmentations(recipe, "augmentations")
    rows = [("part", "type", "parameters", "")]

    def add(role: str, kind: str, name: str, network: object, times: str = "") -> None:
        count = sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0
        rows.append((role, times + name, f"{count:,}" if count else "-", find(kind, name).summary))

    # A missing training split raises below; test images are optional.
    splits = ["trainA", "trainB", *(s for s in ("testA", "testB") if dataset.has(s))]
    add("method", "method", recipe.method, None)
    counts = ", ".join(f"{split} {count}" for split, count in recipe.count_images(*splits).items())
    source = "testA" if recipe.data.direction == "AtoB" else "testB"
    instead = source.replace("test", "train")
    lack = "" if source in splits else f"; no {source}: the first of {instead} are shown instead"
    rows.append(("data", recipe.data.type, "-", counts + lack))

    def several(role: str) -> tuple[list[Any], str]:
        networks = [n for name, n in session.method.named_children() if name.split("_")[0] == role]
        return networks, f"{len(networks)} x " if len(networks) > 1 else ""

    for role in ("generator", "discriminator", "encoder", "sampler"):
        if hasattr(session.method, role):
            networks, times = several(role)
            add(role, role, recipe.part(role).type, nn.ModuleList(networks), times)
    objectives, times = several("nce")
    for index, kind in enumerate(objectives[0].kinds if objectives else ()):
        add("objective", "objective", kind, nn.ModuleList(each[index] for each in objectives), times)
    networks, times = several("heads")
    if heads := sum(p.numel() for network in networks for p in network.parameters()):
        rows.append(("heads", times.removesuffix(" x "), f"{heads:,}", "One two-layer MLP per tap."))
    for spec in recipe.augmentations:
        add("augmentation", "augmentation", spec.type, None)
    for spec in recipe.discriminator_augmentations:
        add("for the discriminator", "augmentation", spec.type, None)
    return rows

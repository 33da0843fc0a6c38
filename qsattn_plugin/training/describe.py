"""A table of the parts that a recipe builds."""

from __future__ import annotations

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
    networks = dict(session.method.named_children())
    for role in ("generator", "discriminator", "encoder", "sampler"):
        if hasattr(session.method, role):
            several = nn.ModuleList(n for name, n in networks.items() if name.split("_")[0] == role)
            times = f"{len(several)} x " if len(several) > 1 else ""
            add(role, role, recipe.part(role).type, several, times)
    objectives = getattr(session.method, "nce", ())
    for kind, objective in zip(getattr(objectives, "kinds", ()), objectives, strict=True):
        add("objective", "objective", kind, objective)
    if list(getattr(session.method, "heads", nn.Identity()).parameters()):
        heads = sum(p.numel() for p in networks["heads"].parameters())
        rows.append(("heads", "", f"{heads:,}", "One two-layer MLP per tap."))
    for spec in recipe.augmentations:
        add("augmentation", "augmentation", spec.type, None)
    for spec in recipe.discriminator_augmentations:
        add("for the discriminator", "augmentation", spec.type, None)
    return rows

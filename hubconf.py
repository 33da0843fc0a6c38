"""Entries for ``torch.hub.load``; they need only torch, pillow, pyyaml and safetensors."""

dependencies = ["torch", "PIL", "yaml", "safetensors"]


def _package():
    """The loader of the package beside this file; warns if the process has imported another copy of the package."""
    import os
    import warnings

    import qsattn_plugin

    here = os.path.dirname(os.path.realpath(__file__))
    used = os.path.dirname(os.path.realpath(qsattn_plugin.__file__))
    if used != os.path.join(here, "qsattn_plugin"):
        warnings.warn(
            f"this process has imported qsattn_plugin {qsattn_plugin.__version__} from {used} already, and uses its "
            f"code and its weights, not those of {here}; start a new process to use the latter",
            stacklevel=3,
        )
    from qsattn_plugin.translation import load

    return load


_ENTRY = """{summary}

    >>> from PIL import Image
    >>> model = torch.hub.load(".", "qsattn_{name}", source="local")
    >>> model.translate(Image.new("RGB", (250, 190), "tan")).size
    (250, 190)

    Args:
        pretrained: load the published weights; otherwise the generator has its random initial weights.
        progress: show the progress of a download on stderr.
        device: device of the model.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, 3, H, W) in [-1, 1], sides multiples of
        ``model.generator.multiple``; ``model.translate(picture)`` takes a PIL image (or a list of them) of any size and
        mode, and returns its translation at the same size. Pictures much larger or smaller than those of its training,
        whose shorter side is ``model.trained``, are translated at that size, and the change is carried back;
        ``at=512`` or ``at="full"`` sets another.
    """


def _entries():
    """An entry for each model in the index of published models beside this file."""
    import os

    import yaml

    def entry(name, summary):
        def load(pretrained=True, progress=True, device="cpu"):
            return _package().published(name, pretrained, progress, device)

        load.__name__ = load.__qualname__ = f"qsattn_{name}"
        load.__doc__ = _ENTRY.format(name=name, summary=summary)
        return load

    here = os.path.dirname(os.path.realpath(__file__))
    with open(os.path.join(here, "registry", "pretrained.yaml"), encoding="utf-8") as index:
        models = yaml.safe_load(index)
    return {f"qsattn_{name}": entry(name, model["summary"]) for name, model in models.items()}


globals().update(_entries())


def qsattn_generator(weights=None, type=None, device="cpu", **arguments):
    """A generator for unpaired image-to-image translation: from a file or run, or with random initial weights.

    >>> import torch
    >>> model = torch.hub.load(".", "qsattn_generator", source="local", type="resnet_4blocks", width=8)
    >>> model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 3, 64, 64])

    Args:
        weights: a run's folder, a checkpoint or a weights file of this package, or the name of a published model; None
            for random initial weights.
        type: without ``weights``: the generator's registered name, e.g. "mobile_resnet_9blocks"; by default
            "resnet_9blocks".
        device: device of the model.
        arguments: without ``weights``: the generator's arguments, such as ``width``.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, C, H, W) in [-1, 1], sides multiples of
        ``model.generator.multiple`` where it has one; ``model.translate(picture)`` takes a PIL image (or a list of
        them) of any size and mode, and returns its translation at the same size, as the published models do;
        ``model.trained`` is None where it is not known.
    """
    loading = _package()
    if weights is None:
        return loading.fresh(type or "resnet_9blocks", **arguments).to(loading.pick_device(str(device)))
    if type is not None:
        arguments = {"type": type, **arguments}
    if arguments:
        from qsattn_plugin.errors import UserError

        raise UserError(f"weights determine the generator; do not give {', '.join(arguments)} as well")
    return loading.load(weights, device)

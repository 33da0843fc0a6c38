"""Entries for ``torch.hub.load``; needs torch, pillow, pyyaml and safetensors alone."""

dependencies = ["torch", "PIL", "yaml", "safetensors"]


def _package():
    """The package beside this file; says so where this process uses another copy of it already."""
    import os
    import warnings

    import qsattn_plugin

    here = os.path.dirname(os.path.realpath(__file__))
    used = os.path.dirname(os.path.realpath(qsattn_plugin.__file__))
    if used != os.path.join(here, "qsattn_plugin"):
        warnings.warn(
            f"this process has imported qsattn_plugin {qsattn_plugin.__version__} from {used} already, and uses its "
            f"code and its weights, not those of {here}; start a new process to use these",
            stacklevel=3,
        )
    from qsattn_plugin.translation import load

    return load


def qsattn_toy(pretrained=True, progress=True, device="cpu"):
    """Drawn toy horses to toy zebras, 64 pixels: small and quick, to try things with.

    >>> import torch
    >>> model = torch.hub.load(".", "qsattn_toy", source="local")
    >>> model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 3, 64, 64])

    Args:
        pretrained: with the published weights; else the generator as it is drawn.
        progress: show a download's progress on stderr, where the weights have to be downloaded.
        device: where to put it.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, 3, H, W) in [-1, 1]; ``model.translate(picture)`` takes a PIL
        image (or a list of them) of any size and mode, and gives it back translated at the same size.
    """
    return _package().published("toy", pretrained, progress, device)


def qsattn_horse2zebra(pretrained=True, progress=True, device="cpu"):
    """Horses to zebras, 256 pixels: the best of the models trained with QS-Attn on CycleGAN's horse2zebra.

    At present that is `qsattn_horse2zebra_mobile`; a better one will take this name. docs/horse2zebra.md shows what it
    does to the first 16 test horses.

    >>> from PIL import Image
    >>> model = torch.hub.load(".", "qsattn_horse2zebra", source="local")
    >>> model.translate(Image.new("RGB", (250, 190), "tan")).size
    (250, 190)

    Args:
        pretrained: with the published weights; else the generator as it is drawn.
        progress: show a download's progress on stderr, where the weights have to be downloaded.
        device: where to put it.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, 3, H, W) in [-1, 1]; ``model.translate(picture)`` takes a PIL
        image (or a list of them) of any size and mode, and gives it back translated at the same size.
    """
    return _package().published("horse2zebra", pretrained, progress, device)


def qsattn_horse2zebra_mobile(pretrained=True, progress=True, device="cpu"):
    """Horses to zebras, 256 pixels, by a small generator: two million parameters, trained on two CPU cores.

    >>> from PIL import Image
    >>> model = torch.hub.load(".", "qsattn_horse2zebra_mobile", source="local")
    >>> model.translate(Image.new("RGB", (250, 190), "tan")).size
    (250, 190)

    Args:
        pretrained: with the published weights; else the generator as it is drawn.
        progress: show a download's progress on stderr, where the weights have to be downloaded.
        device: where to put it.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, 3, H, W) in [-1, 1]; ``model.translate(picture)`` takes a PIL
        image (or a list of them) of any size and mode, and gives it back translated at the same size.
    """
    return _package().published("horse2zebra_mobile", pretrained, progress, device)


def qsattn_generator(weights=None, type=None, device="cpu", **arguments):
    """A generator of your own for unpaired image-to-image translation: from a file or run, or as it is drawn.

    >>> import torch
    >>> model = torch.hub.load(".", "qsattn_generator", source="local", type="resnet_4blocks", width=8)
    >>> model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 3, 64, 64])

    Args:
        weights: a run's folder, a checkpoint or a weights file of this package, or the name of a published model; None
            draws new weights.
        type: without ``weights``: the generator's registered name, e.g. "mobile_resnet_9blocks"; "resnet_9blocks"
            if it is not given.
        device: where to put it.
        arguments: without ``weights``: the generator's own arguments, such as ``width``.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, C, H, W) in [-1, 1]; ``model.translate(picture)`` takes a PIL
        image (or a list of them) of any size and mode, and gives it back translated at the same size.
    """
    loading = _package()
    if weights is None:
        return loading.fresh(type or "resnet_9blocks", **arguments).to(device)
    if type is not None:
        arguments = {"type": type, **arguments}
    if arguments:
        from qsattn_plugin.errors import UserError

        raise UserError(f"weights say which generator they are for; do not give {', '.join(arguments)} as well")
    return loading.load(weights, device)

"""Entries for ``torch.hub.load``; needs torch, pillow, pyyaml and safetensors alone."""

dependencies = ["torch", "PIL", "yaml", "safetensors"]


def qsattn_generator(weights=None, type="resnet_9blocks", device="cpu", **arguments):
    """A generator for unpaired image-to-image translation: trained, from a file or run, or as it is drawn.

    >>> import torch
    >>> model = torch.hub.load(".", "qsattn_generator", source="local", type="resnet_4blocks", width=8)
    >>> model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 3, 64, 64])

    Args:
        weights: a run's folder, a checkpoint or a weights file of this package; None draws new weights.
        type: without ``weights``: the generator's registered name, e.g. "resnet_9blocks", "mobile_resnet_9blocks".
        device: where to put it.
        arguments: without ``weights``: the generator's own arguments, such as ``width``.

    Returns:
        An ``nn.Module``: ``model(images)`` translates (B, C, H, W) in [-1, 1]; ``model.translate(picture)`` takes a PIL
        image (or a list of them) of any size and mode, and gives it back translated at the same size.
    """
    from qsattn_plugin.errors import UserError as _UserError
    from qsattn_plugin.translation import load as _loading

    if weights is None:
        return _loading.fresh(type, **arguments).to(device)
    if arguments:
        raise _UserError(f"weights say which generator they are for; do not give {', '.join(arguments)} as well")
    return _loading.load(weights, device)

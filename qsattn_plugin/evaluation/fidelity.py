"""The published FID and KID, and LPIPS: torch-fidelity's networks, weights and formulas, behind this package's door.

torch-fidelity comes with the extra ``metrics``. Its weights are downloaded once into torch.hub's folder, or given as
files; without a network an error says which file goes where.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.data.images import show
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.storage.download import DownloadFailed, download, download_bar
from qsattn_plugin.storage.weights import read_weights

#: The widths that its Inception has features of, and the one that FIDs are published with.
WIDTHS = ("64", "192", "768", "2048")
USUAL = "2048"

_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


def library() -> Any:
    """Return torch-fidelity; raise UserError if it is not installed."""
    try:
        import torch_fidelity
    except ImportError as error:
        raise UserError(
            "fid, kid and lpips on published weights need torch-fidelity: pip install torch-fidelity "
            "(fid and kid need nothing more than a network of yours with --extractor)"
        ) from error
    return torch_fidelity


class Inception:
    """torch-fidelity's Inception of 2015, an :class:`~qsattn_plugin.evaluation.features.Extractor`.

    Its features are those of some of :data:`WIDTHS`; weights are downloaded into torch.hub's folder, unless given.

    Raises:
        UserError: torch-fidelity or the weights cannot be had, they are another network's, or a width is none of those.
    """

    resize = "299 x 299, bilinear as TensorFlow 1 does it, by torch-fidelity"

    def __init__(self, widths: tuple[str, ...], weights: Path | None, device: torch.device):
        library()
        from torch_fidelity import feature_extractor_inceptionv3 as module

        for width in widths:
            if width not in WIDTHS:
                raise UserError(f"Inception has no features {width!r}{nearest(width, WIDTHS)} ({', '.join(WIDTHS)})")
        file = weights or fetched(
            module.URL_INCEPTION_V3, "give it with --extractor-weights, or choose a network of yours with --extractor"
        )
        read_weights(file, saved=True)
        try:
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", list(widths), feature_extractor_weights_path=str(file)
            )
        except RuntimeError as error:
            raise UserError(
                f"{show(file)} does not hold the weights of torch-fidelity's Inception of 2015, "
                f"{module.URL_INCEPTION_V3.rpartition('/')[2]} (torchvision's Inception is another network)"
            ) from error
        self.weights = file
        self.device = device
        self.network = network.to(device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        return self.network.convert_features_tuple_to_dict(self.network(images.to(self.device)))


def fid(a: Tensor, b: Tensor) -> float:
    """The Frechet inception distance of two sets of features (N, D) by torch-fidelity."""
    library()
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(features) for features in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def kid(a: Tensor, b: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """The kernel inception distance of two sets of features (N, D) by torch-fidelity: mean, deviation over subsets."""
    library()
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(
        a, b, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False, kid_kernel="poly"
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


class Lpips:
    """The learned perceptual distance (VGG16) of two pictures, by torch-fidelity.

    Raises:
        UserError: torch-fidelity or its two files of weights cannot be had.
    """

    def __init__(self, device: torch.device):
        library()
        from torch_fidelity import sample_similarity_lpips as module

        # Both must lie in torch.hub's folder, where the library and torchvision look before they download.
        for url in (module.URL_VGG16_LPIPS, _VGG16):
            read_weights(fetched(url, "or leave lpips out of --metrics"), saved=True)
        self.device = device
        self.network = module.SampleSimilarityLPIPS("lpips-vgg16").to(device).eval()

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Compare two pictures, uint8 (3, H, W) of one size, at least 16 high and wide; 0 is equal."""
        return float(self.network(a[None].to(self.device), b[None].to(self.device)))


def fetched(url: str, otherwise: str) -> Path:
    """Return the file of weights in torch.hub's folder, downloaded if it is not there.

    Raises:
        UserError: it cannot be downloaded; the message says what may be done ``otherwise``.
    """
    place = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not place.is_file():
        try:
            with download_bar(place.name) as progress:
                download(url, place, progress=progress)
        except DownloadFailed as error:
            raise UserError(f"{error}: get the file elsewhere and put it at {show(place)}, {otherwise}") from error
    return place

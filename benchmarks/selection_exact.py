"""How many of the selected queries are the right ones, on a model's own features of real pictures?

    python benchmarks/selection_exact.py MODEL PICTURE... [--tap 12 --tap 16] [--size 256]

For each tap, the queries of three formulas in float32 against those of a log-entropy in float64: ours; the entropy as
logsumexp(s) - sum(p s); and softmax, logarithm, infinities set to 0. MODEL is a run, a checkpoint or a weights file, or
`fresh:NAME` for a registered generator as it is drawn.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.attention import row_entropy, select_queries
from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.pixels import to_channels, to_float
from qsattn_plugin.evaluation.sources import feature_source
from qsattn_plugin.registry import create

QUERIES = 256


def exact(features: Tensor, rows: int = 512) -> Tensor:
    """The log-entropy (HW,) of features (HW, C) in float64, from sums without the row's largest entry."""
    features = features.double()
    found = []
    for tile in features.split(rows):
        scores = tile @ features.T
        largest, place = scores.max(dim=1, keepdim=True)
        d = (scores - largest).scatter_(1, place, -torch.inf)
        second = d.amax(dim=1, keepdim=True)
        weights = (d - second).exp()
        rest = weights.sum(dim=1)
        weighted = -(weights * d.masked_fill(d.isneginf(), 0)).sum(dim=1)
        r = second[:, 0].exp() * rest
        share = torch.where(r < 1e-300, 1.0, r.log1p() / r)
        found.append(second[:, 0] + (rest * share + weighted / (1 + r)).log())
    return torch.cat(found)


def logsumexp_form(features: Tensor) -> Tensor:
    """The entropy as logsumexp(s) - sum(p s), (HW,)."""
    scores = features @ features.T
    return scores.logsumexp(dim=1) - (scores.softmax(dim=1) * scores).sum(dim=1)


def plain_form(features: Tensor) -> Tensor:
    """The entropy as -sum(p log p), infinities set to 0, (HW,)."""
    p = (features @ features.T).softmax(dim=1)
    log = p.log()
    return -(p * log.masked_fill(log.isinf(), 0)).sum(dim=1)


def main() -> None:
    """Measure the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--tap", dest="taps", action="append", required=True)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    if arguments.model.startswith("fresh:"):
        torch.manual_seed(0)
        generator = create("generator", arguments.model.removeprefix("fresh:"))
        encoder = create("encoder", "generator", taps=tuple(arguments.taps), generator=generator)
    else:
        source = feature_source(arguments.model, tuple(arguments.taps))
        generator, encoder = source.generator, source.encoder
    print("| tap | picture | largest probability | ours | logsumexp | softmax and log |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for path in arguments.pictures:
        picture = read_image(path).resize((arguments.size, arguments.size), Image.Resampling.BICUBIC)
        with torch.no_grad():
            maps = encoder.features(generator, to_float(to_channels(picture, 3))[None])
        for tap, features in zip(encoder.taps, maps, strict=True):
            flat = features[0].flatten(1).T.contiguous()
            n = min(QUERIES, len(flat))
            right = set(select_queries(-exact(flat)[None], n)[0].tolist())
            forms = (row_entropy(flat[None], log=True)[0], logsumexp_form(flat), plain_form(flat))
            hits = [len(right & set(select_queries(-form[None], n)[0].tolist())) for form in forms]
            chosen = torch.tensor(sorted(right))
            largest = (flat[chosen] @ flat.T).softmax(dim=1).amax(dim=1).mean()
            print(f"| {tap} | {path.rsplit('/', 1)[-1]} | {largest:.4f} | {' | '.join(f'{h} of {n}' for h in hits)} |")


if __name__ == "__main__":
    main()

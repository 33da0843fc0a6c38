"""The training step of QS-Attn's published code, written down plainly for comparison: what it computes, how it does so.

One pass of the generator over both images; five passes of its encoder half beside it, of which one is never used;
attention as a whole HW x HW matrix on the two deepest taps, through softmax, logarithm, entropy, sort and gather;
random places on the others; one backward pass of the summed losses; Adam as it comes. float32, NCHW. Networks are ours
in size and order of layers, with the layers as they are written there: in-place ReLUs, PyTorch's own norm and padding,
resampling as grouped convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import create
from qsattn_plugin.registry.layers import Downsample, InstanceNorm, Upsample
from qsattn_plugin.registry.layers.memory_saving import ReflectionPad

TAPS = (0, 4, 8, 12, 16)
ATTENTIVE = (12, 16)
QUERIES = 256


class TransposedUpsample(nn.Module):
    """Doubles the size with the [1, 3, 3, 1] filter as a grouped transposed convolution of the repeated border."""

    def __init__(self, filt: Tensor):
        super().__init__()
        self.register_buffer("filt", filt)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv_transpose2d(x, self.filt.to(x.dtype), stride=2, padding=3, groups=x.shape[1])


class PlainDownsample(nn.Module):
    """Blurs with [1, 2, 1] and halves the size."""

    def __init__(self, filt: Tensor):
        super().__init__()
        self.register_buffer("filt", filt)
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.filt, stride=2, groups=x.shape[1])


class PlainReLU(nn.LeakyReLU):
    """A ReLU by itself, in place. A class of its own is not joined with the norm before it."""


def written_plainly(network: nn.Module) -> nn.Module:
    """Exchange, in place, the layers that we write differently."""
    for name, layer in network.named_children():
        if isinstance(layer, Upsample):
            setattr(network, name, TransposedUpsample(layer.filt))
        elif isinstance(layer, InstanceNorm):
            setattr(network, name, nn.InstanceNorm2d(layer.num_features))
        elif isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            setattr(network, name, PlainReLU(getattr(layer, "negative_slope", 0.0), inplace=True))
        elif isinstance(layer, Downsample):
            setattr(network, name, PlainDownsample(layer.filt))
        elif isinstance(layer, ReflectionPad):
            setattr(network, name, nn.ReflectionPad2d(layer.padding))
        else:
            written_plainly(layer)
    return network


class PlainStep:
    """Networks, optimizers and :meth:`step`."""

    def __init__(self, device: torch.device):
        torch.manual_seed(0)
        self.generator = written_plainly(create("generator", "resnet_9blocks")).to(device)
        self.discriminator = written_plainly(create("discriminator", "patchgan")).to(device)
        channels = [tap.channels for tap in self.generator.find_taps(TAPS)]
        self.heads = ProjectionHeads(channels).to(device)
        self.optimizers = {
            network: torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.generator, self.heads, self.discriminator)
        }

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change the networks once, on images "A" and "B", (B, 3, H, W) each."""
        a, b = batch["A"], batch["B"]
        both = self.generator(torch.cat((a, b)))
        fake, same = both[: len(a)], both[len(a) :]

        self.discriminator.requires_grad_(True)
        self.optimizers[self.discriminator].zero_grad()
        on_fake, on_real = self.discriminator(fake.detach()), self.discriminator(b)
        judged = 0.5 * (F.mse_loss(on_fake, torch.zeros_like(on_fake)) + F.mse_loss(on_real, torch.ones_like(on_real)))
        judged.backward()
        self.optimizers[self.discriminator].step()

        self.discriminator.requires_grad_(False)
        for network in (self.generator, self.heads):
            self.optimizers[network].zero_grad()
        scores = self.discriminator(fake)
        adversarial = F.mse_loss(scores, torch.ones_like(scores))
        self.encode(fake)  # the pass that nothing comes of
        contrast = 0.5 * (self.contrast(a, fake) + self.contrast(b, same))
        (adversarial + contrast).backward()
        for network in (self.generator, self.heads):
            self.optimizers[network].step()
        return {"D": judged.detach(), "G_GAN": adversarial.detach(), "NCE": contrast.detach()}

    def encode(self, image: Tensor) -> list[Tensor]:
        return self.generator(image, taps=TAPS, encode_only=True)

    def contrast(self, source: Tensor, image: Tensor) -> Tensor:
        """The contrastive loss; both images are encoded for it."""
        encoded, origin = self.encode(image), self.encode(source)
        anchors, positives = [], []
        for tap, anchor, positive in zip(TAPS, encoded, origin, strict=True):
            anchor, positive = (f.permute(0, 2, 3, 1).flatten(1, 2) for f in (anchor, positive))
            if tap in ATTENTIVE:
                rows = attention_rows(positive)
                anchor, positive = torch.bmm(rows, anchor), torch.bmm(rows, positive)
            else:
                places = torch.randperm(anchor.shape[1], device=anchor.device)[:QUERIES]
                anchor, positive = anchor[:, places], positive[:, places]
            anchors.append(anchor)
            positives.append(positive)
        pairs = zip(self.heads(anchors), self.heads(positives), strict=True)
        return sum(patch_nce(anchor, positive) for anchor, positive in pairs) / len(TAPS)


def attention_rows(features: Tensor) -> Tensor:
    """The selected rows of softmax(F F^T), (B, N, HW), of features (B, HW, C)."""
    attention = torch.bmm(features, features.transpose(1, 2)).softmax(dim=-1)
    log = torch.log(attention)
    log = torch.where(log.isinf(), torch.zeros_like(log), log)
    entropy = -(log * attention).sum(dim=-1)
    queries = entropy.sort(dim=-1).indices[:, :QUERIES]
    return attention.gather(1, queries.unsqueeze(-1).expand(-1, -1, attention.shape[-1]))


def patch_nce(anchors: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of the diagonal: the positive's similarity first, then the negatives' with the diagonal blotted."""
    positives = positives.detach()
    positive = (anchors * positives).sum(dim=-1, keepdim=True)
    negatives = torch.bmm(anchors, positives.transpose(1, 2))
    diagonal = torch.eye(anchors.shape[1], device=anchors.device, dtype=torch.bool)[None]
    negatives = negatives.masked_fill(diagonal, -10.0)
    logits = torch.cat((positive, negatives), dim=2).flatten(0, 1) / 0.07
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

"""Small CUT forks, written for the tests: a sampler with CUT's interface, and one client for each way to call one.

The file stands alone (torch and numpy), so that a test can put it into a folder as a fork's ``models/networks.py``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class PatchSampleF(nn.Module):
    """Random positions, the same in every image; MLPs that are made at the first call."""

    def __init__(self, use_mlp=True, init_type="normal", init_gain=0.02, nc=16, gpu_ids=()):
        super(PatchSampleF, self).__init__()  # noqa: UP008  (as the forks write it: the name must stay the class)
        self.use_mlp = use_mlp
        self.mlp_init = False
        self.nc = nc

    def create_mlp(self, feats):
        for index, feat in enumerate(feats):
            self.add_module(f"mlp_{index}", self.head(feat.shape[1]))
        self.mlp_init = True

    def head(self, channels):
        return nn.Sequential(nn.Linear(channels, self.nc), nn.ReLU(), nn.Linear(self.nc, self.nc))

    def draw(self, feat, num_patches):
        return torch.from_numpy(np.random.permutation(feat.shape[2] * feat.shape[3])[:num_patches])

    def project(self, rows, index):
        if self.use_mlp:
            rows = getattr(self, f"mlp_{index}")(rows)
        return rows / (rows.norm(dim=1, keepdim=True) + 1e-7)

    def pick(self, feat, ids):
        return feat.flatten(2).transpose(1, 2)[:, ids].flatten(0, 1)

    def forward(self, feats, num_patches=64, patch_ids=None):
        if self.use_mlp and not self.mlp_init:
            self.create_mlp(feats)
        ids = [self.draw(f, num_patches) for f in feats] if patch_ids is None else patch_ids
        return [self.project(self.pick(f, i), n) for n, (f, i) in enumerate(zip(feats, ids, strict=True))], ids


class ChoosingF(PatchSampleF):
    """The MLP may be named, or left out, in the call."""

    def forward(self, feats, num_patches=64, patch_ids=None, choice=None, use_mlp=True):
        if not self.mlp_init:
            self.create_mlp(feats)
        ids = [self.draw(f, num_patches) for f in feats] if patch_ids is None else patch_ids
        rows = [self.pick(f, i) for f, i in zip(feats, ids, strict=True)]
        numbers = range(len(feats)) if choice is None else [choice] * len(feats)
        return [self.project(r, n) for r, n in zip(rows, numbers, strict=True)] if use_mlp else rows, ids


class EverywhereF(PatchSampleF):
    """Gives the MLP's output at every position, too, if asked to."""

    def forward(self, feats, num_patches=64, patch_ids=None, return_all=False):
        rows, ids = super().forward(feats, num_patches, patch_ids)
        if not return_all:
            return rows, ids
        maps = []
        for index, feat in enumerate(feats):
            flat = self.project(feat.permute(0, 2, 3, 1).flatten(0, 2), index)
            maps.append(flat.view(feat.shape[0], *feat.shape[2:], -1).permute(0, 3, 1, 2))
        return rows, maps, ids


class GuidedF(PatchSampleF):
    """Draws where a map that is given is small; has a second head."""

    def create_prj(self, feats):
        for index in range(len(feats)):
            self.add_module(f"prj_{index}", nn.Linear(self.nc, self.nc))

    def forward(self, feats, num_patches=64, patch_ids=None, cams=None, prj=False):
        if not self.mlp_init:
            self.create_mlp(feats)
            self.create_prj(feats)
        if patch_ids is None:
            patch_ids = [[c.flatten().argsort()[:num_patches] for c in cam] for cam in cams]
        out = []
        for index, (feat, ids) in enumerate(zip(feats, patch_ids, strict=True)):
            rows = torch.cat([self.pick(feat[b : b + 1], i) for b, i in enumerate(ids)])
            rows = getattr(self, f"mlp_{index}")(rows)
            rows = getattr(self, f"prj_{index}")(rows) if prj else rows
            out.append(rows / (rows.norm(dim=1, keepdim=True) + 1e-7))
        return out, patch_ids


class QueryF(PatchSampleF):
    """A query-selected attention as one writes it down: in float32, entropy by softmax and logarithm."""

    attentive = 1  # the first so many maps are sampled at random

    def forward(self, feats, num_patches=64, patch_ids=None, attn_mats=None):
        if not self.mlp_init:
            self.create_mlp(feats)
        out, ids, mats = [], [], []
        for index, feat in enumerate(feats):
            flat = feat.flatten(2).transpose(1, 2)
            if index < self.attentive:
                ids.append(self.draw(feat, num_patches) if patch_ids is None else patch_ids[index])
                mats.append(torch.zeros(1))
                rows = flat[:, ids[-1]]
            else:
                ids.append([])
                if attn_mats is None:
                    rows = torch.bmm(flat, flat.transpose(1, 2)).softmax(2)
                    logs = -rows.log()
                    entropy = (rows * torch.where(logs.isinf(), torch.zeros_like(logs), logs)).sum(2)
                    best = entropy.sort().indices[:, :num_patches]
                    mats.append(rows.gather(1, best.unsqueeze(2).expand(-1, -1, rows.shape[2])))
                else:
                    mats.append(attn_mats[index])
                rows = torch.bmm(mats[-1], flat)
            out.append(self.project(rows.flatten(0, 1), index))
        return out, ids, mats


class EagerF(PatchSampleF):
    """MLPs from the start, from the numbers of channels."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.create_mlp(channels)

    def create_mlp(self, channels):
        for index, c in enumerate(channels):
            self.add_module(f"mlp_{index}", self.head(c))
        self.mlp_init = True


class LazyCountsF(PatchSampleF):
    """MLPs at the first call, from the numbers of channels; on the GPU, whatever was asked for."""

    def create_mlp(self, channels):
        for index, c in enumerate(channels):
            self.add_module(f"mlp_{index}", self.head(c).cuda() if torch.cuda.is_available() else self.head(c))
        self.mlp_init = True

    def forward(self, feats, num_patches=64, patch_ids=None):
        if not self.mlp_init:
            self.create_mlp([f.shape[1] for f in feats])
        return super().forward(feats, num_patches, patch_ids)


class CurvedF(PatchSampleF):
    """A head of another kind, made at the first call; what the options call it is not what it is."""

    def __init__(self, nc=16):
        super().__init__(use_mlp=False, nc=nc)

    def project(self, rows, index):
        rows = getattr(self, f"curve_{index}")(rows)
        return rows / (rows.norm(dim=1, keepdim=True) + 1e-7)

    def forward(self, feats, num_patches=64, patch_ids=None):
        if not self.mlp_init:
            for index, feat in enumerate(feats):
                self.add_module(f"curve_{index}", nn.Sequential(nn.Linear(feat.shape[1], self.nc), nn.Tanh()))
            self.mlp_init = True
        return super().forward(feats, num_patches, patch_ids)


class ListedF(PatchSampleF):
    """The MLPs in a list."""

    def create_mlp(self, feats):
        self.mlp = nn.ModuleList(self.head(feat.shape[1]) for feat in feats)
        self.mlp_init = True

    def project(self, rows, index):
        rows = self.mlp[index](rows)
        return rows / (rows.norm(dim=1, keepdim=True) + 1e-7)


class DeafF(PatchSampleF):
    """Takes an argument that it does nothing with, and -1 for all rows."""

    def forward(self, feats, num_patches=64, patch_ids=None, source=None):
        if num_patches < 0:
            return [f.flatten(2).transpose(1, 2).flatten(0, 1) for f in feats], []
        return super().forward(feats, num_patches, patch_ids)


class UnsetF(PatchSampleF):
    """None in a call means what the module was built with."""

    def __init__(self, use_mlp=True, nc=16, num_patches=24, return_all=True):
        super().__init__(use_mlp=use_mlp, nc=nc)
        self.num_patches, self.return_all = num_patches, return_all

    def forward(self, feats, num_patches=None, patch_ids=None, use_mlp=None, return_all=None):
        if not self.mlp_init:
            self.create_mlp(feats)
        n = self.num_patches if num_patches is None else num_patches
        ids = [self.draw(f, n) for f in feats] if patch_ids is None else patch_ids
        rows = [self.pick(f, i) for f, i in zip(feats, ids, strict=True)]
        if self.use_mlp if use_mlp is None else use_mlp:
            rows = [self.project(r, i) for i, r in enumerate(rows)]
        if not (self.return_all if return_all is None else return_all):
            return rows, ids
        flat = [self.project(f.flatten(2).transpose(1, 2).flatten(0, 1), i) for i, f in enumerate(feats)]
        maps = [m.unflatten(0, (f.shape[0], *f.shape[2:])).movedim(-1, 1) for m, f in zip(flat, feats, strict=True)]
        return rows, maps, ids


class ShuffledF(PatchSampleF):
    """Large maps are rearranged first: space to depth."""

    def forward(self, feats, num_patches=64, patch_ids=None):
        feats = [nn.functional.pixel_unshuffle(f, 2) if f.shape[-1] > 8 else f for f in feats]
        return super().forward(feats, num_patches, patch_ids)


class CentredF(PatchSampleF):
    """Features are normalised before the MLP; as CUT's class it copies the ids that it is given."""

    def forward(self, feats, num_patches=64, patch_ids=None, centre=False):
        feats = [nn.functional.instance_norm(f) for f in feats] if centre else feats
        if patch_ids is not None:
            copies = zip(patch_ids, feats, strict=True)
            patch_ids = [torch.tensor(ids, dtype=torch.long, device=feat.device) for ids, feat in copies]
        return super().forward(feats, num_patches, patch_ids)


class PlacedF(PatchSampleF):
    """Channels tell the place; gathers by index_select, in (B, C, positions)."""

    def pick(self, feat, ids):
        where = torch.linspace(-1, 1, feat.shape[2]).view(1, 1, -1, 1).expand(feat.shape[0], 1, *feat.shape[2:])
        flat = torch.cat([feat, where], dim=1).flatten(2)
        return torch.index_select(flat, 2, ids).transpose(1, 2).flatten(0, 1)

    def head(self, channels):
        return super().head(channels + 1)


class VolumeF(PatchSampleF):
    """Three spatial dimensions."""

    def draw(self, feat, num_patches):
        return torch.randperm(feat.shape[2] * feat.shape[3] * feat.shape[4])[:num_patches]

    def pick(self, feat, ids):
        return feat.permute(0, 2, 3, 4, 1).flatten(1, 3)[:, ids, :].flatten(0, 1)


class NamedOnlyF(PatchSampleF):
    """All but the features by name."""

    def forward(self, feats, *, patch_ids=None, num_patches=64):
        return super().forward(feats, num_patches, patch_ids)


class LayersF(PatchSampleF):
    """Feature maps by name."""

    def forward(self, feats, num_patches=64, patch_ids=None):
        return super().forward(list(feats.values()), num_patches, patch_ids)


def contrast(anchors, positives, batch, num_patches):
    """CUT's loss, in the form that needs exactly num_patches rows an image (it builds their identity matrix)."""
    losses = []
    for a, p in zip(anchors, positives, strict=True):
        a, p = a.view(batch, num_patches, -1), p.detach().view(batch, num_patches, -1)
        similar = torch.bmm(a, p.transpose(1, 2)) / 0.07
        positive = torch.eye(num_patches, dtype=torch.bool).expand(batch, -1, -1)
        losses.append((similar.logsumexp(2) - similar[positive].view(batch, -1)).mean())
    return sum(losses) / len(losses)


class Model:
    """A training model as CUT's are: no nn.Module, networks in attributes, F's optimizer after the first step."""

    kind = PatchSampleF
    several = True  # more than one image; not where ids that are the same for all images index something
    inside = False  # whether the class does work of its own that only inside=True keeps
    sizes = ((8, 10, 10), (12, 6, 6))  # C, H, W of its two feature maps

    def __init__(self):
        self.build()
        self.optimizer_F = None

    def build(self):
        self.netF = self.kind()

    def step(self, source, target, n):
        """Return the loss of feature maps (lists, by layer) of the source and of its translation."""
        batch = source[0].shape[0]
        loss = contrast(*self.features(source, target, n), batch, n)
        if self.optimizer_F is None:
            self.optimizer_F = torch.optim.Adam(self.parameters(), 1e-3)
        return loss

    def parameters(self):
        return list(self.netF.parameters())

    def features(self, source, target, n):
        positives, ids = self.netF(source, n, None)
        return self.netF(target, n, ids)[0], positives


class Flipped(Model):
    """FastCUT: a flipped translation is flipped back in its features."""

    def features(self, source, target, n):
        positives, ids = self.netF(source, n, None)
        back = [f.flip(3) for f in (f.flip(3) for f in target)]
        return self.netF(back, n, ids)[0], positives


class Crossed(Model):
    """DCLGAN: the ids of one module go to the other."""

    def build(self):
        self.netF1, self.netF2 = self.kind(), self.kind()

    def parameters(self):
        return [*self.netF1.parameters(), *self.netF2.parameters()]

    def features(self, source, target, n):
        positives, ids = self.netF1(source, n, None)
        return self.netF2(target, n, ids)[0], positives


class FakeFirst(Model):
    """Positions of the translation, used on the source and once more."""

    def features(self, source, target, n):
        anchors, ids = self.netF(target, n, None)
        self.netF(source, n, ids)
        return anchors, self.netF(source, num_patches=n, patch_ids=ids)[0]


class Regularised(Model):
    """SRUNIT: one layer alone, its MLP by number; the ids index another tensor."""

    kind = ChoosingF
    several = False

    def features(self, source, target, n):
        positives, ids = self.netF(source, n, None)
        anchors = self.netF(target, n, ids)[0]
        some, ids = self.netF([source[1]], n, None, use_mlp=True, choice=1)
        moved, _ = self.netF([target[1]], n, ids, use_mlp=True, choice=1)
        noise = torch.ones_like(source[1][:, :1])
        for a, b, samples in zip(some, moved, ids, strict=True):
            weight = noise.flatten(1, 3)[:, samples].flatten(0, 1)
            assert ((a - b).norm(dim=1) / weight).shape == (n,)
        return anchors, positives


class Everywhere(Model):
    """NEGCUT: three values, and maps."""

    kind = EverywhereF

    def features(self, source, target, n):
        positives, maps, ids = self.netF(source, n, None, True)
        assert [m.shape[2:] for m in maps] == [f.shape[2:] for f in source]
        return self.netF(target, n, ids)[0], positives


class Guided(Model):
    """EnCo: a second name for the same module, maps to choose by, a second head on one side."""

    kind = GuidedF

    def build(self):
        self.netF = self.netF2 = self.kind()

    def features(self, source, target, n):
        cams = [f.norm(dim=1, keepdim=True) for f in target]
        anchors, ids = self.netF(target, n, None, cams=cams, prj=True)
        return anchors, self.netF2(source, n, ids)[0]


class Querying(Model):
    """QS-Attn's own descendants: a third value that is passed on."""

    kind = QueryF

    def features(self, source, target, n):
        positives, ids, mats = self.netF(source, n, None, None)
        anchors, _, _ = self.netF(target, n, ids, mats)
        return anchors, positives


class Eager(Model):
    """MLPs before the first call."""

    def build(self):
        self.netF = EagerF((8, 12))


class Counting(Model):
    """MLPs from numbers of channels."""

    kind = LazyCountsF


class Curved(Model):
    """A head of another kind."""

    kind = CurvedF


class Listed(Model):
    """MLPs in a list."""

    kind = ListedF


class Deaf(Model):
    """Gives an argument that nothing is done with."""

    kind = DeafF

    def features(self, source, target, n):
        positives, ids = self.netF(source, n, None, source=source[0])
        return self.netF(target, n, ids, source=source[0])[0], positives


class Unset(Model):
    """Leaves to the module what it was built with."""

    kind = UnsetF

    def features(self, source, target, n):
        positives, _, ids = self.netF(source)
        return self.netF(target, None, ids)[0], positives


class Shuffled(Model):
    """Work of the class's own on large maps."""

    kind = ShuffledF
    inside = True


class Centred(Model):
    """Work of the class's own that an argument switches on."""

    kind = CentredF
    inside = True

    def features(self, source, target, n):
        positives, ids = self.netF(source, n, None, centre=True)
        return self.netF(target, n, ids, centre=True)[0], positives


class Placed(Model):
    """Channels of the class's own."""

    kind = PlacedF
    inside = True


class Volume(Model):
    """Three spatial dimensions."""

    kind = VolumeF
    sizes = ((8, 4, 5, 5), (12, 2, 4, 4))


class NamedOnly(Model):
    """Arguments by name."""

    kind = NamedOnlyF

    def features(self, source, target, n):
        positives, ids = self.netF(source, num_patches=n)
        return self.netF(target, num_patches=n, patch_ids=ids)[0], positives


class Layers(Model):
    """Feature maps by the names of their layers."""

    kind = LayersF

    def features(self, source, target, n):
        (source, target) = ({f"layer_{i}": f for i, f in enumerate(maps)} for maps in (source, target))
        positives, ids = self.netF(source, n, None)
        return self.netF(target, n, ids)[0], positives


class Parallel(Model):
    """The module in DataParallel, as CUT has it whatever the number of GPUs."""

    def build(self):
        self.netF = nn.DataParallel(self.kind())


CLIENTS = (
    *(Model, Flipped, Crossed, FakeFirst, Regularised, Everywhere, Guided, Querying, Eager, Counting, Parallel),
    *(Curved, Listed, Deaf, Unset, Shuffled, Centred, Placed, Volume, NamedOnly, Layers),
)

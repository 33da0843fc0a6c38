"""A class with the interface of CUT's ``PatchSampleF`` and a registered sampler inside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from qsattn_plugin.errors import one_of
from qsattn_plugin.forks.calls import CallForm
from qsattn_plugin.forks.swap import Swap

__all__ = ["PatchSampler"]

_DRAWS = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain),
}

#: Stands for an argument that was not given.
_ABSENT = object()


class PatchSampler(nn.Module):
    """CUT's ``PatchSampleF`` with a registered sampler inside, for code that can name its class.

    Called with ``(feats, num_patches, patch_ids)`` it returns unit rows (B * N, nc) of each feature map, image by
    image, and ids: (N,) for one image, (B, N) for several, N = min(num_patches, H * W). ``num_patches=0`` asks for maps
    (B, nc, H, W). A fourth value in the call is ``return_all`` where it is a bool, and otherwise ``attn_mats``; what
    these and others mean is listed in :mod:`qsattn_plugin.forks.calls`.

    Args:
        use_mlp: Project by one MLP a feature map, made at the first call; otherwise only normalise.
        init_type: How the MLPs' weights are drawn: "normal", "xavier", "kaiming" or "orthogonal".
        init_gain: Scale of that draw.
        nc: Width of the MLPs.
        gpu_ids: Ignored: the MLPs are made on the device of the features.
        sampler: Registered name of the sampler.
        arguments: Its arguments.
        ignored: Other arguments that a fork passes to its class.

    Raises:
        ValueError: there is no such init_type.
        UserError: there is no such sampler, or it does not take these arguments.
    """

    def __init__(
        self,
        use_mlp: bool = False,
        init_type: str = "normal",
        init_gain: float = 0.02,
        nc: int = 256,
        gpu_ids: Sequence[int] = (),
        sampler: str = "qsattn_global",
        arguments: dict[str, Any] | None = None,
        **ignored: Any,
    ):
        super().__init__()
        one_of(_DRAWS, init_type=init_type)
        self.use_mlp = use_mlp
        self.mlp_init = False
        self.init_type = init_type
        self.init_gain = init_gain
        self.nc = nc
        self.gpu_ids = gpu_ids
        self.swap = Swap(sampler, **(arguments or {}))

    def __getstate__(self) -> dict[str, Any]:
        # Here, unlike in a fork's class, the sampler comes back where the module is loaded.
        return self.__dict__ | {"swap": (self.swap.name, self.swap.inside, self.swap.arguments)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name, inside, arguments = state["swap"]
        super().__setstate__(state | {"swap": Swap(name, inside=inside, **arguments)})

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchSampler:
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__ = copy.deepcopy(self.__dict__, memo)  # not by its state: copies share the swap
        return made

    def create_mlp(self, feats: Sequence[Tensor | int]) -> None:
        """Make one MLP for each feature map (B, C, H, W), on its device, or for each number of channels."""
        for index, feat in enumerate(feats):
            channels = feat.shape[1] if isinstance(feat, Tensor) else int(feat)
            first, second = nn.Linear(channels, self.nc), nn.Linear(self.nc, self.nc)
            for layer in (first, second):
                _DRAWS[self.init_type](layer.weight, self.init_gain)
                nn.init.zeros_(layer.bias)
            mlp = nn.Sequential(first, nn.ReLU(), second)
            self.add_module(f"mlp_{index}", mlp.to(feat.device) if isinstance(feat, Tensor) else mlp)
        self.mlp_init = True

    def forward(
        self, feats: Sequence[Tensor], num_patches: int = 64, patch_ids: Any = None, fourth: Any = _ABSENT, **named: Any
    ) -> tuple:
        """Return features and ids, or three values, depending on the call."""
        if fourth is not _ABSENT:
            named["return_all" if isinstance(fourth, bool) else "attn_mats"] = fourth
        form = _WITH_ROWS if "attn_mats" in named else _WITHOUT_ROWS
        return self.swap(self, form.read(None, self, feats, num_patches, patch_ids, **named))


def _without_rows(
    self, feats, num_patches, patch_ids, return_all=False, choice=None, use_mlp=True, cams=None, prj=False
): ...
def _with_rows(
    self, feats, num_patches, patch_ids, attn_mats=None, choice=None, use_mlp=True, cams=None, prj=False
): ...


_WITHOUT_ROWS, _WITH_ROWS = (CallForm(form, "PatchSampler") for form in (_without_rows, _with_rows))

"""Feature maps of timm models: building a model, loading its weights, converting images and maps."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError, at_least, nearest
from qsattn_plugin.storage.weights import read_weights

#: Without named taps, levels whose positions span more pixels are left out: they have too few positions.
_COARSEST = 16
#: Sides of images that are tried for one that a model takes.
_SIDES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)


class TimmFeatures(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to the feature maps (B, C, h, w) of some levels of a timm model.

    A frozen model stays in evaluation mode and gets no gradient, but passes gradients to the image. If its weights come
    from timm or from a file, they are not in ``state_dict``: the same arguments build it again.

    Args:
        model: a timm name such as "convnext_tiny" or "swin_tiny_patch4_window7_224".
        taps: levels of the model, as timm's ``out_indices``; without them those with a stride up to 16.
        pretrained: load timm's weights, downloaded or from its cache; otherwise they are random.
        weights: a file with weights instead, ``.safetensors`` or a state_dict that ``torch.save`` wrote.
        trained: train the model together with the generator; otherwise it is frozen.
        size: the side of the images in pixels, for models that are built for one size; a recipe takes it from
            ``data.crop``.
        in_channels: channels of the images; a recipe takes them from ``data.channels``. Grey is repeated; for others
            but RGB timm repeats the filters of the first convolution, and their means and deviations are repeated too.
        deepest: without named taps, the number of coarsest levels to use.
        target_channels: channels of the images of the target domain: the same, or 1 and 3 in either order.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        taps: tuple[int, ...] | None = None,
        pretrained: bool = False,
        weights: Path | None = None,
        trained: bool = False,
        size: int | None = None,
        in_channels: int = 3,
        deepest: int | None = None,
        target_channels: int | None = None,
    ):
        super().__init__()
        at_least(1, in_channels=in_channels, deepest=1 if deepest is None else deepest)
        grey = in_channels in (1, 3) and target_channels in (None, 1, 3)
        if not grey and target_channels not in (None, in_channels):
            what = f"images of {in_channels} channels and translations of {target_channels}"
            raise UserError(f"one timm model cannot encode {what}; use encoder: {{type: generator}}")
        self.in_channels, self.target_channels = in_channels, target_channels or in_channels
        width = 3 if in_channels == 1 else in_channels
        if pretrained and weights:
            raise ValueError("weights: give either a file or pretrained, not both")
        check_model(model)
        self.name = model
        file = _read(weights) if weights else None
        if taps is None:
            levels = _levels(model, size)
            taps = tuple(levels)[-deepest:] if deepest else tuple(i for i, s in levels.items() if s <= _COARSEST)
            taps = taps or tuple(levels)
        if not taps or min(taps) < 0 or len(set(taps)) < len(taps):
            raise ValueError(f"taps: must be distinct levels, numbered from 0, got {list(taps)}")
        self.taps: list[int] = sorted(taps)
        self.model: Any = _create(model, size, self.taps, pretrained, file, weights, width)
        if file and weights:
            _check_taken(self.model, file, model, weights)
        self.channels: list[int] = self.model.feature_info.channels()
        self.strides: list[int] = self.model.feature_info.reduction()
        self.trained = trained
        #: Whether the weights are saved in checkpoints: random ones cannot be loaded again from elsewhere.
        self.saved = trained or not (pretrained or weights)

        settings = self.model.pretrained_cfg
        # Images are resized for models that are built for one size.
        fixed = settings.get("fixed_input_size", False) and not self.model.takes_any_size
        self.fixed_size: int | None = (size or settings["input_size"][-1]) if fixed else None
        for name in ("mean", "std"):
            own = settings[name]
            values = torch.tensor([own[band % len(own)] for band in range(width)])
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        if hasattr(self, "register_load_state_dict_pre_hook"):
            self.register_load_state_dict_pre_hook(_keep_frozen)
        else:  # PyTorch 2.4
            self._register_load_state_dict_pre_hook(_keep_frozen, with_module=True)
        self.model.requires_grad_(trained)
        self.train()

    def train(self, mode: bool = True) -> TimmFeatures:
        """Set the mode; a frozen model stays in evaluation mode."""
        return super().train(mode and self.trained)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights if they are trained or random, else nothing."""
        if self.saved:
            return super().state_dict(*args, **kwargs)
        destination = args[0] if args else kwargs.get("destination")
        return {} if destination is None else destination

    def resized(self, image: Tensor) -> Tensor:
        """Return images at the one size that the model takes; as they are where it takes any."""
        side = self.fixed_size
        if side is None or image.shape[-2:] == (side, side):
            return image
        return F.interpolate(image, (side, side), mode="bilinear", antialias=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps (B, C, h, w) of ``image`` (B, C, H, W) in [-1, 1], one a tap."""
        x = (self.resized(image.to(self.mean.dtype)) + 1) / 2
        try:
            maps = self.model((x - self.mean) / self.std)  # a single grey channel is broadcast to three
        except (AssertionError, RuntimeError, ValueError) as problem:  # of a size that does not fit the model, usually
            if out_of_memory(problem) or image.is_meta:  # shapes alone may not do: the values are tried next
                raise
            height, width = image.shape[-2:]
            why = f"{type(problem).__name__}: {problem}".partition("\n")[0].removesuffix(": ")
            own, size = self.model.pretrained_cfg["input_size"][-1], max(height, width)
            advice = _fitting(self.name, size, own, self.taps, bool(self.fixed_size))
            raise ValueError(f"model: {self.name} fails on {width} x {height} pixels ({why}){advice}") from problem
        if getattr(self.model, "output_fmt", None) == "NHWC":
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return list(maps)


def check_model(model: str) -> None:
    """Raise UserError for a model that timm does not have; hf-hub:OWNER/NAME and local-dir:PATH are looked up later."""
    import timm  # imported here, because it takes longer than all other imports

    if ":" not in model and not timm.is_model(model):
        near = nearest(model.split(".")[0], timm.list_models())
        raise UserError(f"timm {timm.__version__} has no model {model!r}{near}")


def _fitting(model: str, near: int, own: int | None, taps: list[int] | None = None, resizes: bool = False) -> str:
    """Return which sides of images a model takes, for a message: up to three, its own and those closest to ``near``."""
    found: list[int] = []
    for side in sorted({*_SIDES, *filter(None, [own])}, key=lambda side: (side != own, abs(side - near)))[:6]:
        with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad():
            _build(model, side, taps)(torch.empty(2, 3, side, side))
            found.append(side)
    if not found:
        return ""
    part = " or this part's size, to which its images are then brought," if resizes else ""
    return f"; set data.crop{part} to {' or '.join(map(str, found[:3]))}"


def _keep_frozen(module: TimmFeatures, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: a frozen model is not in the file, and keeps its weights."""
    if not module.saved:
        for key, value in nn.Module.state_dict(module, prefix=prefix).items():
            state_dict.setdefault(key, value)


def _levels(model: str, size: int | None) -> dict[int, int]:
    """Return the pixels that a position spans at each level of a timm model, by the index of the level."""
    with torch.random.fork_rng(devices=[]):  # must not change later random draws
        info = _create(model, size).feature_info
    return dict(zip(info.out_indices, info.reduction(), strict=True))


def _create(
    model: str,
    size: int | None,
    taps: list[int] | None = None,
    pretrained: bool = False,
    file: Mapping[str, Tensor] | None = None,
    path: Path | None = None,
    channels: int = 3,
) -> Any:
    """Build a features-only model.

    Raises:
        UserError: timm cannot."""
    try:
        return _build(model, size, taps, pretrained, file, channels)
    except UserError:
        raise
    except Exception as problem:
        raise UserError(_explain(problem, model, size, taps, pretrained, path)) from problem


def _build(
    model: str,
    size: int | None,
    taps: list[int] | None = None,
    pretrained: bool = False,
    file: Mapping[str, Tensor] | None = None,
    channels: int = 3,
) -> Any:
    """Build a features-only model, with the most flexible of the size arguments that it accepts."""
    import timm

    arguments: dict[str, Any] = {"features_only": True, "out_indices": taps, "pretrained": pretrained}
    if file is not None:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(file)}}
    free: dict[str, Any] = {"img_size": size, "dynamic_img_size": True}
    # Padding is for vision transformers whose patch size (14 pixels, say) does not divide the image's side.
    ways = [{**free, "dynamic_img_pad": True}, free, {"img_size": size}, {}]
    arguments |= {"in_chans": channels} if channels != 3 else {}
    builder = logging.getLogger("timm.models._builder")
    lost: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        lost.extend(["it"] if "Unable to convert" in record.getMessage() else [])
        return record.levelno >= logging.ERROR

    with contextlib.ExitStack() as stack:
        if pretrained or ":" in model:
            stack.enter_context(_hub())
        # timm warns about unused weights such as a classifier's; _check_taken checks the file instead.
        stack.callback(builder.removeFilter, note)
        builder.addFilter(note)
        for way in ways:
            try:
                built: Any = timm.create_model(model, **arguments, **way)
                built.takes_any_size = "dynamic_img_size" in way
                if lost:  # timm would go on with random ones
                    raise UserError(
                        f"timm cannot widen the first layer of {model} to {channels} channels; use another model"
                    )
                return built
            except TypeError as problem:
                # Its constructor has no such argument: convolutional networks need none.
                if not way or "unexpected keyword argument" not in str(problem):
                    raise
    raise AssertionError("the last way raises")


def _explain(
    problem: Exception, model: str, size: int | None, taps: list[int] | None, pretrained: bool, path: Path | None
) -> str:
    """Return a message about why timm could not build a model, and what to do."""
    import timm

    said = (str(problem).strip() or type(problem).__name__).splitlines()[0][:300].rstrip(".")
    if taps is not None:
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
            whole: Any = timm.create_model(model, features_only=True)
            count = len(whole.feature_info.info)
            if max(taps) >= count:
                return f"{model} has the levels 0 to {count - 1}, but taps are {taps}"
    if pretrained:
        hub = "" if ":" in model else (timm.get_pretrained_cfg_value(model, "hf_hub_id") or "").rstrip("/")
        page = f" (on a machine with a network, from https://huggingface.co/{hub})" if hub else ""
        return (
            f"could not get pretrained weights of {model}: {said}. Without a network, copy their file to this "
            f"machine{page} and set weights: path/to/model.safetensors beside the model's name, instead of "
            "pretrained: true where that stands (for qsattn map: --weights)"
        )
    if path:
        return f"{path}: the weights do not fit {model} ({said}); is it another model's file?"
    at = f" for images of {size} pixels" if size else ""
    own = None if ":" in model else timm.get_pretrained_cfg_value(model, "input_size")
    return (
        f"timm cannot give the features of {model}{at}: {said}{_fitting(model, size, own[-1]) if size and own else ''}"
    )


@contextlib.contextmanager
def _hub() -> Iterator[None]:
    """Let the hub's client use only its cache if the hub cannot be reached.

    Otherwise it would try each file six times, with waits of a minute in between.
    """
    from huggingface_hub import constants, get_session

    was = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # noqa: BLE001 - the client would fail for the same reason
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


def _read(weights: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, without executing code from it."""
    path = Path(weights).expanduser()
    found = read_weights(path)
    found = found if isinstance(found, Mapping) else {}
    found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    tensors = {str(key).removeprefix("module."): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    return tensors


def _check_taken(model: nn.Module, file: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Raise UserError if most weights are not those of the file: timm ignores unknown keys."""

    def mark(value: Tensor) -> tuple[int, float]:
        return value.numel(), value.double().sum().item()

    marks = {mark(value) for value in file.values()}
    taken = [mark(parameter) in marks for parameter in model.parameters()]
    # Not all, because timm resamples what depends on the image's size.
    if sum(taken) < 0.8 * len(taken):
        what = f"holds {sum(taken)} of the {len(taken)} weights of {name}"
        raise UserError(f"{path}: {what}; is it another model's file?")

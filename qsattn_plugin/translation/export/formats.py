"""The export formats: how a generator is written in each, and read again.

Writers are called without gradients, where the layers consist of standard operators. Every format leaves height, width
and batch size free, and stores a document about the generator where it can (:data:`DOCUMENT`).
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create
from qsattn_plugin.registry.cut_weights import load_cut_weights, recognise

#: The document's key in an ONNX file's metadata, and its name among the extra files of TorchScript and pt2.
DOCUMENT = "qsattn.json"

#: Translates images (B, C, H, W) to (B, C', H, W).
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A generator to export, in evaluation mode, on the CPU."""

    generator: nn.Module
    type: str  # registered name
    arguments: dict[str, Any]
    channels: int
    multiple: int  # pixels of which both sides are multiples
    least: int  # smallest side in pixels
    document: dict[str, Any]  # facts about it, as JSON data
    taps: tuple[int | str, ...] = ()  # whose features an ONNX file gives too, as outputs features_TAP


@dataclass(frozen=True)
class Format:
    """An export format: how files are written and read; ``check`` raises UserError if it cannot hold the subject."""

    suffix: str
    write: Callable[[Subject, Path], None]
    read: Callable[[Path, Subject], Runner]
    check: Callable[[Subject], None] = lambda subject: None
    name: str | None = None  # of the file in a folder, where programs look for a fixed one


def _example(subject: Subject, units: tuple[int, int, int]) -> Tensor:
    """Return random images for tracing; ``units`` are the batch size, and height and width in smallest sides."""
    batch, height, width = units
    shape = (batch, subject.channels, height * subject.least, width * subject.least)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _exported(subject: Subject) -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """Return an example input and its dynamic shapes, for torch.export."""
    least = subject.least // subject.multiple
    height, width = (subject.multiple * torch.export.Dim(name, min=least) for name in ("h", "w"))
    # torch.export would specialise on sizes that are 1, and equate those that are equal.
    return (_example(subject, (2, 2, 3)),), ({0: torch.export.Dim("batch", min=1), 2: height, 3: width},)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' log messages and warnings."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _save(write: Callable[[io.BytesIO], None], path: Path) -> None:
    """Write a file through memory: on a full disk PyTorch's own writer ends the whole process."""
    file = io.BytesIO()
    write(file)
    path.write_bytes(file.getbuffer())


def too_old(format: str) -> bool:
    """Return whether this PyTorch is too old to write a format: 2.4 writes "torchscript" and "cut" alone."""
    if format == "onnx":
        return "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters
    from torch.fx.experimental import _config

    return format == "pt2" and not hasattr(_config, "backed_size_oblivious")


def _check_age(format: str) -> None:
    if too_old(format):
        raise UserError(f"{format} needs a newer PyTorch than {torch.__version__}; torchscript does not")


def _check_pt2(subject: Subject) -> None:
    _check_age("pt2")


def check_onnx(subject: Subject) -> None:
    """Raise UserError where a package that ONNX needs is not installed, or PyTorch is too old."""
    for package in ("onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            what = f"ONNX needs the package {package}, which is not installed"
            raise UserError(f"{what}: pip install onnxscript onnxruntime") from error
    _check_age("onnx")


def _write_onnx(subject: Subject, path: Path) -> None:
    example, free = _exported(subject)
    outputs = ["translations", *(f"features_{tap}" for tap in subject.taps)]
    module = _WithFeatures(subject.generator, subject.taps) if subject.taps else subject.generator
    program = onnx_program(module, example, free, ["images"], outputs)
    model = program.model
    model.graph.name = subject.document["name"]
    model.doc_string = subject.document["about"]
    model.metadata_props[DOCUMENT] = json.dumps(subject.document)
    program.save(path, external_data=False)


class _WithFeatures(nn.Module):
    """A generator that returns the features at taps beside the translation."""

    def __init__(self, generator: nn.Module, taps: tuple[int | str, ...]):
        super().__init__()
        self.generator, self.taps = generator, taps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        translation, features = self.generator(images, taps=self.taps)
        return (translation, *features)


def onnx_program(module: nn.Module, example: tuple, free: tuple, inputs: list[str], outputs: list[str]) -> Any:
    """Return a module as an ONNX program that names nothing of this machine; ``free`` are its dynamic shapes."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            dynamic_shapes=free,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    assert program is not None  # with dynamo
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the folders of this machine
    return program


def _read_onnx(path: Path, subject: Subject) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["translations"], {"images": images.numpy()})[0])


def _write_torchscript(subject: Subject, path: Path) -> None:
    with _quiet():
        traced = torch.jit.trace(subject.generator, _example(subject, (1, 1, 1)), check_trace=False)
        _save(lambda file: torch.jit.save(traced, file, _extra_files={DOCUMENT: json.dumps(subject.document)}), path)


def _read_torchscript(path: Path, subject: Subject) -> Runner:
    with _quiet():
        return torch.jit.load(path, map_location="cpu")


def _write_pt2(subject: Subject, path: Path) -> None:
    from torch.fx.experimental import _config

    example, free = _exported(subject)
    # Otherwise a U-Net's program would refuse images of its own size, which have one position at the bottom.
    with _quiet(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # torch adds it at run time
        program = torch.export.export(subject.generator, example, dynamic_shapes=free)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the folders of this machine
    _save(lambda file: torch.export.save(program, file, extra_files={DOCUMENT: json.dumps(subject.document)}), path)


def _read_pt2(path: Path, subject: Subject) -> Runner:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _check_cut(subject: Subject) -> None:
    name, arguments = subject.type, subject.arguments
    why = None
    if name not in ("resnet_9blocks", "resnet_6blocks", "resnet_4blocks", "unet_256", "unet_128"):
        why = "they have ResNets with 9, 6 or 4 blocks and U-Nets for 256 or 128 pixels"
    elif name.startswith("resnet") and arguments["norm"] == "none":
        why = "their ResNets without a norm have no biases either"
    if why:
        raise UserError(f"CUT and CycleGAN cannot read this {name}: {why}; export it as onnx, torchscript or pt2")


def _write_cut(subject: Subject, path: Path) -> None:
    # Copies: a view would be saved with its whole base tensor.
    weights = {key: value.detach().cpu().clone() for key, value in subject.generator.state_dict().items()}
    _save(lambda file: torch.save(OrderedDict(weights), file), path)


def _read_cut(path: Path, subject: Subject) -> Runner:
    weights = torch.load(path, map_location="cpu", weights_only=True)
    name, arguments = recognise(weights)
    with torch.random.fork_rng(devices=[]):
        generator = create("generator", name, **arguments)
    load_cut_weights(generator, weights)
    return generator.eval()


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, check_onnx),
    "torchscript": Format(".pt", _write_torchscript, _read_torchscript),
    "pt2": Format(".pt2", _write_pt2, _read_pt2, _check_pt2),
    "cut": Format(".pth", _write_cut, _read_cut, _check_cut, "latest_net_G.pth"),
}


def cut_options(subject: Subject) -> dict[str, str]:
    """Return, by project, the options of its ``test.py`` that build the network of a ``cut`` export."""
    a = subject.arguments
    if subject.type == "resnet_4blocks":  # in CUT's networks, but not among the choices of its --netG
        return {}
    size = f"--netG {subject.type} --ngf {a['width']} --input_nc {a['in_channels']} --output_nc {a['out_channels']}"
    blurs = [key for key in ("antialias", "antialias_up") if a.get(key)]
    unblurred = "".join(f" --no_{key}" for key in ("antialias", "antialias_up") if key in a and not a[key])
    average = " --eval" if a["norm"] == "batch" else ""  # otherwise it uses the statistics of the test images
    found = {}
    if a["in_channels"] == 3 and a["out_channels"] in (1, 3):  # CUT's script always reads pictures in colour
        found["CUT"] = f"{size} --normG {a['norm']}{unblurred}{average}"
    if not blurs and {a["in_channels"], a["out_channels"]} <= {1, 3}:  # nor does CycleGAN's read other bands
        found["CycleGAN"] = f"--model test {size} --norm {a['norm']} --no_dropout{average}"
    return found

"""The formats that a generator can be written in, and how each is read again.

Writers are called without gradients: the layers are plain operators then. Every format keeps height, width and batch
free; a document about the generator goes along where the format has a place for it (:data:`DOCUMENT`).
"""

from __future__ import annotations

import importlib
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

#: What the document is called in an ONNX file's metadata and among the extra files of TorchScript and pt2.
DOCUMENT = "qsattn.json"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        generator: in evaluation mode, on the CPU.
        type: its registered name.
        arguments: with which it was built.
        channels: of the images it takes.
        multiple: sides are multiples of so many pixels.
        least: the smallest side, in pixels.
        document: what is known about it, JSON-able.
    """

    generator: nn.Module
    type: str
    arguments: dict[str, Any]
    channels: int
    multiple: int
    least: int
    document: dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A format: its file names' ending, and the functions that check, write and read it.

    Attributes:
        suffix: of the file.
        write: writes a subject to a path.
        read: gives the function (B, C, H, W) to (B, C, H, W) that a file is.
        check: raises :class:`UserError` where the subject cannot be had in this format.
        name: of the file in a folder, where programs look for a fixed one.
    """

    suffix: str
    write: Callable[[Subject, Path], None]
    read: Callable[[Path, Subject], Run]
    check: Callable[[Subject], None] = lambda subject: None
    name: str | None = None


def _example(subject: Subject, units: tuple[int, int, int]) -> Tensor:
    """An image batch for tracing: so many images, so many times the smallest height and width."""
    batch, height, width = units
    shape = (batch, subject.channels, height * subject.least, width * subject.least)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _exported(subject: Subject) -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """An example and which of its sizes are free, for torch.export and all that builds on it."""
    least = subject.least // subject.multiple
    height, width = (subject.multiple * torch.export.Dim(name, min=least) for name in ("h", "w"))
    # Sizes of the example that were 1, or equal, would be taken for rules.
    return (_example(subject, (2, 2, 3)),), ({0: torch.export.Dim("batch", min=1), 2: height, 3: width},)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what exporters say to developers."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _save(write: Callable[[io.BytesIO], None], path: Path) -> None:
    """Write a file by way of memory: on a full disk PyTorch's own writer ends the whole process."""
    file = io.BytesIO()
    write(file)
    path.write_bytes(file.getbuffer())


def _onnx_needs(subject: Subject) -> None:
    for package in ("onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"ONNX needs the package {package}, which is not installed: pip install 'qsattn-plugin[onnx]'"
            ) from error


def _write_onnx(subject: Subject, path: Path) -> None:
    example, free = _exported(subject)
    with _quiet():
        program = torch.onnx.export(
            subject.generator,
            example,
            dynamo=True,
            dynamic_shapes=free,
            input_names=["images"],
            output_names=["translations"],
            verbose=False,
        )
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the folders of this machine
    model.graph.name = subject.document["name"]
    model.doc_string = subject.document["about"]
    model.metadata_props[DOCUMENT] = json.dumps(subject.document)
    program.save(path, external_data=False)


def _read_onnx(path: Path, subject: Subject) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["translations"], {"images": images.numpy()})[0])


def _write_torchscript(subject: Subject, path: Path) -> None:
    with _quiet():
        traced = torch.jit.trace(subject.generator, _example(subject, (1, 1, 1)), check_trace=False)
        _save(lambda file: torch.jit.save(traced, file, _extra_files={DOCUMENT: json.dumps(subject.document)}), path)


def _read_torchscript(path: Path, subject: Subject) -> Run:
    with _quiet():
        return torch.jit.load(path, map_location="cpu")


def _write_pt2(subject: Subject, path: Path) -> None:
    from torch.fx.experimental import _config

    example, free = _exported(subject)
    # Without this the program would refuse whatever has one place at the bottom of a U-Net: images of its own size.
    with _quiet(), _config.patch(backed_size_oblivious=True):
        program = torch.export.export(subject.generator, example, dynamic_shapes=free)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the folders of this machine
    _save(lambda file: torch.export.save(program, file, extra_files={DOCUMENT: json.dumps(subject.document)}), path)


def _read_pt2(path: Path, subject: Subject) -> Run:
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
    # Copies: a tensor that is a view would be saved with all that it is a view of.
    weights = {key: value.detach().cpu().clone() for key, value in subject.generator.state_dict().items()}
    _save(lambda file: torch.save(OrderedDict(weights), file), path)


def _read_cut(path: Path, subject: Subject) -> Run:
    weights = torch.load(path, map_location="cpu", weights_only=True)
    name, arguments = recognise(weights)
    with torch.random.fork_rng(devices=[]):
        generator = create("generator", name, **arguments)
    load_cut_weights(generator, weights)
    return generator.eval()


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, _onnx_needs),
    "torchscript": Format(".pt", _write_torchscript, _read_torchscript),
    "pt2": Format(".pt2", _write_pt2, _read_pt2),
    "cut": Format(".pth", _write_cut, _read_cut, _check_cut, "latest_net_G.pth"),
}


def cut_options(subject: Subject) -> dict[str, str]:
    """Return, by project, the options with which its ``test.py`` builds the network of a ``cut`` export."""
    a = subject.arguments
    if subject.type == "resnet_4blocks":  # in CUT's networks, but not among the choices of its --netG
        return {}
    size = f"--netG {subject.type} --ngf {a['width']} --input_nc {a['in_channels']} --output_nc {a['out_channels']}"
    blurs = [key for key in ("antialias", "antialias_up") if a.get(key)]
    plain = "".join(f" --no_{key}" for key in ("antialias", "antialias_up") if key in a and not a[key])
    average = " --eval" if a["norm"] == "batch" else ""  # or it takes the statistics of the test images
    found = {}
    if a["in_channels"] == 3:  # CUT's script reads pictures in colour, whatever it is told
        found["CUT"] = f"{size} --normG {a['norm']}{plain}{average}"
    if not blurs:
        found["CycleGAN"] = f"--model test {size} --norm {a['norm']} --no_dropout{average}"
    return found

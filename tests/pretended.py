"""A pretended accelerator, for machines without one: the CPU's arithmetic behind a device of its own.

PyTorch lets a backend be written in Python under the device type that it keeps for others; here it is named ``npu``. A
tensor there holds one of the CPU, and operators compute with that. But as on a GPU, an operator refuses tensors of the
CPU beside its own, and within :func:`never_waiting` also whatever would make the host wait for the device: reading a
value, an output whose size hangs on values, a copy that is not asynchronous. So a tensor that was left behind and a
loss that is read in the midst of a step are found without a GPU. What cannot be: a GPU's own kernels, their rounding
and speed, streams, and NCCL.

It cannot be taken back: a process that called :func:`install` has the device until its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qsattn_plugin.attention import routes

NAME = "npu"

#: Operators whose result the host has to know before it can go on.
READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "bincount"),
}
#: Operators that take tensors of two devices.
COPIES = {"_to_copy", "copy_"}
#: Operators that take positions on the CPU, and then wait until those are copied.
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Refused(AssertionError):
    """A GPU would have refused this, or waited for it."""


class Distant(torch.Tensor):
    """A tensor on the pretended device; ``inner`` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Distant:
        shell = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        shell.inner = inner
        return shell

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})

    def __repr__(self) -> str:
        return f"{self.inner!r} on {NAME}"


class _Everywhere(TorchDispatchMode):
    """Sees every operator, also those that make a tensor on the device out of nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


_waiting_is_refused = False


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Refuse what makes the host wait for the device."""
    global _waiting_is_refused
    _waiting_is_refused = True
    try:
        yield
    finally:
        _waiting_is_refused = False


def present() -> TorchDispatchMode:
    """The context in which the device can be used."""
    return _Everywhere()


def install() -> None:
    """Make the device known to this process, for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel)
    halves = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in ("conv2d", "conv_transpose2d.input", "linear", "matmul", "bmm", "addmm"):
        halves.impl(name, _halved(name))
    # torch.tensor(..., device=...) goes past modes: it makes memory on the device, and copies into that.
    memory = torch.library.Library("aten", "IMPL", "PrivateUse1")
    memory.impl("empty_strided", lambda size, stride, **kwargs: _memory(size, stride, kwargs))
    memory.impl("_copy_from", _copy_from)
    _kept.extend((library, halves, memory))


_kept: list[Any] = []


class _Module:
    """What PyTorch asks of ``torch.npu``."""

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _halved(name: str):
    """An operator that autocast computes in half precision, as it does on GPUs."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME)
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = tree_map(
                lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x,
                (args, kwargs),
            )
            return operator(*args, **kwargs)

    return kernel


def _memory(size: list[int], stride: list[int], kwargs: dict[str, Any]) -> Distant:
    return Distant(torch.empty_strided(size, stride, dtype=kwargs.get("dtype")))


def _copy_from(source: torch.Tensor, target: Distant, non_blocking: bool = False) -> Distant:
    if _waiting_is_refused and not non_blocking:
        raise Refused(f"a copy between CPU and device waits: {tuple(source.shape)}")
    target.inner.copy_(source)
    return target


def _compute(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = function._schema.name.removeprefix("aten::")
    if name == "qsattn_plugin::global_rows":  # one of ours: look inside
        with present():
            return routes.global_rows._init_fn(*args, **kwargs)
    if function._can_decompose():
        with present():
            return function.decompose(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    distant = [t for t in tensors if isinstance(t, Distant)]
    near = [t for t in tensors if not isinstance(t, Distant)]
    device = kwargs.get("device")
    lands = _lands(name, args, device, bool(distant))
    if distant or lands:
        _check(name, args, kwargs, distant, near, lands)
    back = {id(t.inner): t for t in distant}
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Distant) else x, (args, kwargs))
    if lands and device is not None:
        kwargs["device"] = torch.device("cpu")
        kwargs.pop("non_blocking", None)
    found = function(*args, **kwargs)
    if not lands:
        return found
    return tree_map(lambda x: (back[id(x)] if id(x) in back else Distant(x)) if torch.is_tensor(x) else x, found)


def _lands(name: str, args: tuple, device: Any, any_distant: bool) -> bool:
    """Whether the result is on the device."""
    if name == "copy_":
        return isinstance(args[0], Distant)
    if device is not None:
        return torch.device(device).type == NAME
    return any_distant


def _check(name: str, args: tuple, kwargs: dict[str, Any], distant: list, near: list, lands: bool) -> None:
    shapes = ", ".join(str(tuple(t.shape)) for t in near if t.ndim)
    if shapes and distant and name not in COPIES | INDEXED:
        raise Refused(f"{name}: a tensor of the CPU, {shapes}, beside one on the device")
    if not _waiting_is_refused:
        return
    if name in READS:
        raise Refused(f"{name} waits for the device")
    if name in INDEXED and (near or any(t.dtype == torch.bool for t in distant)):
        raise Refused(f"{name} by a mask, or by positions on the CPU, waits for the device")
    if name in COPIES and (near or not lands):
        asynchronous = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        if not (lands and asynchronous):
            raise Refused(f"{name} between CPU and device waits: {shapes or 'one number'}")

"""An accelerator that is not there: its tensors live on the CPU, but mix with the CPU's as little as those of a GPU.

Within `accelerator()` a device, `cuda:0` or `mps:0`, can be named anywhere, in any thread. What it refuses is refused:
an operation on tensors of both sides, numbers taken to numpy, fp64 where there is none. What makes the host wait for it
is counted: each copy that is not sent on its way, and each look at a number. So all that runs on a GPU can be tested
without one, but for its own kernels, its rounding, its speed, and waits inside of an operation.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
GPU, MPS = torch.device("cuda:0"), torch.device("mps:0")
LOOKS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten._unique2.default)
"""Operations of which the host needs the outcome."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""Indices may come from the CPU: they are sent over."""


class There(Tensor):
    """A tensor of the accelerator; `here` is the CPU's that it stands on, and shares its memory with."""

    here: Tensor

    def __new__(cls, here: Tensor) -> There:
        made = Tensor._make_subclass(cls, here, False)
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    device = property(lambda self: _now[-1])
    is_cuda = property(lambda self: _now[-1].type == "cuda")
    is_mps = property(lambda self: _now[-1].type == "mps")
    is_cpu = property(lambda self: False)

    def cpu(self, *_: object) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: object) -> Tensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype)
        kwargs.pop("copy", None)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            WAITS["copy from there"] += 1
            return self.here.to(dtype or self.dtype)
        return self if dtype in (None, self.dtype) else super().to(dtype)

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def numpy(self, *_: object, **__: object) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __repr__(self) -> str:
        return f"There({self.here})"


_now = [GPU]
"""The device that is there now."""
_most = [2**60]
"""Bytes of the largest tensor for which it has memory."""
WAITS: Counter[str] = Counter()
"""How often the host waited, and for what."""


class _Mode(TorchDispatchMode):
    """Sends operations that make a tensor there, or move one there; of this kind torch does not look for a GPU."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __enter__(self) -> Any:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor(..., device=GPU) would go past this
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*error)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in given if isinstance(one, There)]
    named = kwargs.get("device")
    if func is aten._to_copy.default and there and named and named.type == "cpu":
        named = None  # torch itself, to another dtype: it knows the memory that this stands on
    kwargs = kwargs | ({} if named is None else {"device": "meta" if named.type == "meta" else "cpu"})
    _count(func, args, given, named, kwargs.get("non_blocking", False))
    if there:
        _check(func, args, given)
        if torch.Tag.inplace_view in func.tags:  # changes what the tensor says of itself, as well
            func(args[0].here, *args[1:], **kwargs)
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
            return args[0]
    to_float = there and func is aten.histc.default and not args[0].is_floating_point()  # a CPU has it of floats
    args, kwargs = tree_map(_here, args), tree_map(_here, kwargs)
    out = func(args[0].float(), *args[1:]).to(args[0].dtype) if to_float else func(*args, **kwargs)
    if named is not None and named.type != _now[-1].type or named is None and not there:
        return out
    if any(one.nbytes > _most[-1] for one in tree_leaves(out) if isinstance(one, Tensor)):
        raise torch.OutOfMemoryError(f"{_now[-1].type} out of memory")
    if _now[-1] == MPS and any(one.dtype == torch.float64 for one in tree_leaves(out) if isinstance(one, Tensor)):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    known = {id(one.here): one for one in there}  # what was written to stays what it is
    return tree_map(lambda one: known.get(id(one), There(one)) if isinstance(one, Tensor) else one, out)


def _count(func: Any, args: Any, given: list[Tensor], named: torch.device | None, non_blocking: bool) -> None:
    there = [isinstance(one, There) for one in given]
    if func in LOOKS and any(there):
        WAITS[f"look: {func}"] += 1
    elif func is aten._to_copy.default and named == _now[-1] and not there[0] and not non_blocking:
        WAITS["copy to there"] += 1
    elif func is aten.copy_.default and there[0] != there[1] and given[1].ndim:
        WAITS["copy to there" if there[0] else "copy from there"] += 1
    elif func in INDEXING and any(there) and not all(there):
        WAITS["indices to there"] += 1


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _check(func: Any, args: Any, given: list[Tensor]) -> None:
    """As CUDA's kernels: both sides only in copies, numbers, and indices from the CPU."""
    if func in (aten._to_copy.default, aten.copy_.default):
        return
    strangers = [one for one in given if not isinstance(one, There) and one.ndim]
    if strangers and not (func in INDEXING and isinstance(args[0], There)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}, {[one.device for one in given]}")


class _Event:
    """What has been asked of the device up to here is done: it is the CPU that does it."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        WAITS["event"] += 1


@contextmanager
def accelerator(device: torch.device = GPU, most: int = _most[0]) -> Iterator[Counter[str]]:
    """A device, GPU or MPS, which has no fp64, within -> how often the host waited for it since.

    most: bytes of the largest tensor for which it has memory.
    """
    run = threading.Thread.run

    def run_there(self: threading.Thread) -> None:
        with _Mode():
            run(self)

    stand_ins: dict[str, Any] = {  # of torch.cuda
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "synchronize": lambda device=None: WAITS.update(["synchronize"]),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_device_name": lambda device=None: "stand-in",
        "get_device_capability": lambda device=None: (7, 0),
    }
    with ExitStack() as until:
        until.callback(
            torch.__future__.set_overwrite_module_params_on_conversion,
            torch.__future__.get_overwrite_module_params_on_conversion(),
        )
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter moves by becoming another
        # A pool of threads for loading weights would begin outside of this.
        until.enter_context(patch.dict("os.environ", HF_DEACTIVATE_ASYNC_LOAD="1"))
        until.enter_context(patch.object(threading.Thread, "run", run_there))
        for name, stand_in in stand_ins.items():
            until.enter_context(patch.object(torch.cuda, name, stand_in))
        for holder, value in ((_now, device), (_most, most)):
            holder.append(value)
            until.callback(holder.pop)
        until.enter_context(patch.object(torch, "Event", _Event))
        until.enter_context(patch.object(torch.mps, "synchronize", lambda: WAITS.update(["synchronize"])))
        until.enter_context(_Mode())
        WAITS.clear()
        yield WAITS

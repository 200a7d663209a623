"""A stand-in for a GPU: its tensors live on the CPU, but do not mix with the CPU's tensors.

Inside `accelerator()`, any code in any thread can name the device `cuda:0` or `mps:0`. What a device refuses fails: an
operation on tensors of both devices, a conversion to numpy, fp64 on MPS. What makes the host wait is counted: each
blocking copy, and each read of a value. Not simulated: a device's own kernels, rounding and speed, and waits inside an
operation.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prunesid_cli.runtime import device as runtime_device

aten = torch.ops.aten
GPU, MPS = torch.device("cuda:0"), torch.device("mps:0")
READS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten._unique2.default)
"""Operations whose result the host needs."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""Operations whose indices may come from the CPU: they are copied to the device."""


class DeviceTensor(Tensor):
    """A tensor of the accelerator. `host` is the CPU tensor whose memory it shares."""

    host: Tensor

    def __new__(cls, host: Tensor) -> DeviceTensor:
        tensor = Tensor._make_subclass(cls, host, False)
        tensor.host = host
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    device = property(lambda self: _devices[-1])
    is_cuda = property(lambda self: _devices[-1].type == "cuda")
    is_mps = property(lambda self: _devices[-1].type == "mps")
    is_cpu = property(lambda self: False)

    def cpu(self, *_: object) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: object) -> Tensor:
        return self

    def record_stream(self, stream: object) -> None: ...

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype)
        kwargs.pop("copy", None)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            WAITS["copy from device"] += 1
            return self.host.to(dtype or self.dtype)
        return self if dtype in (None, self.dtype) else super().to(dtype)

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def numpy(self, *_: object, **__: object) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __repr__(self) -> str:
        return f"DeviceTensor({self.host})"


_devices = [GPU]
"""The simulated device is the last one."""
_max_tensor_bytes = [2**60]
"""The last one: size of the largest tensor that fits into the device's memory."""
WAITS: Counter[str] = Counter()
"""How often the host waited, by reason."""


class _Mode(TorchDispatchMode):
    """Handles operations that create a tensor on the device or move one there. For fake modes torch needs no GPU."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __enter__(self) -> Any:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # otherwise torch.tensor(..., device=GPU) bypasses the mode
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*error)


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on host tensors. Its results are on the device if an argument is, or if it names the device."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    device_tensors = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    target = kwargs.get("device")
    if func is aten._to_copy.default and device_tensors and target and target.type == "cpu":
        target = None  # a change of dtype: torch names the device of the memory, which is the CPU
    kwargs = kwargs | ({} if target is None else {"device": "meta" if target.type == "meta" else "cpu"})
    _count_wait(func, tensors, target, kwargs.get("non_blocking", False))
    if device_tensors:
        _check_devices(func, args, tensors)
        if torch.Tag.inplace_view in func.tags:  # it changes the shape of the device tensor, too
            func(args[0].host, *args[1:], **kwargs)
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
            return args[0]
    # The CPU's histc takes floats only.
    is_integer_histc = device_tensors and func is aten.histc.default and not args[0].is_floating_point()
    args, kwargs = tree_map(_to_host, args), tree_map(_to_host, kwargs)
    out = func(args[0].float(), *args[1:]).to(args[0].dtype) if is_integer_histc else func(*args, **kwargs)
    if target is not None and target.type != _devices[-1].type or target is None and not device_tensors:
        return out
    results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if any(result.nbytes > _max_tensor_bytes[-1] for result in results):
        raise torch.OutOfMemoryError(f"{_devices[-1].type} out of memory")
    if _devices[-1] == MPS and any(result.dtype == torch.float64 for result in results):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    known = {id(tensor.host): tensor for tensor in device_tensors}  # an operation in place returns its own argument
    return tree_map(lambda leaf: known.get(id(leaf), DeviceTensor(leaf)) if isinstance(leaf, Tensor) else leaf, out)


def _count_wait(func: Any, tensors: list[Tensor], target: torch.device | None, non_blocking: bool) -> None:
    on_device = [isinstance(tensor, DeviceTensor) for tensor in tensors]
    if func in READS and any(on_device):
        WAITS[f"read: {func}"] += 1
    elif func is aten._to_copy.default and target == _devices[-1] and not on_device[0] and not non_blocking:
        WAITS["copy to device"] += 1
    elif func is aten.copy_.default and on_device[0] != on_device[1] and tensors[1].ndim:
        WAITS["copy to device" if on_device[0] else "copy from device"] += 1
    elif func in INDEXING and any(on_device) and not all(on_device):
        WAITS["indices to device"] += 1


def _to_host(value: Any) -> Any:
    return value.host if isinstance(value, DeviceTensor) else value


def _check_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse CPU tensors as CUDA's kernels do: only copies, scalars, and indices may be on the CPU."""
    # The formulas of gradients create zeros where the memory is, which is the CPU.
    is_backward = torch._C._current_graph_task_id() != -1
    if is_backward or func in (aten._to_copy.default, aten.copy_.default):
        return
    cpu_tensors = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.ndim]
    if cpu_tensors and not (func in INDEXING and isinstance(args[0], DeviceTensor)):
        devices = [tensor.device for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}, {devices}")


class _Event:
    """An event that is always complete, because the CPU does the work at once."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        WAITS["event"] += 1


class _Stream:
    """A stream on which work is done at once."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self, event: object = None) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        WAITS["stream"] += 1


@contextmanager
def accelerator(device: torch.device = GPU, max_tensor_bytes: int = _max_tensor_bytes[0]) -> Iterator[Counter[str]]:
    """Simulate a device inside the block.

    Args:
        device: `GPU`, or `MPS`, which has no fp64.
        max_tensor_bytes: Size of the largest tensor that fits into its memory.

    Yields:
        How often the host waited for the device since the block began, by reason.
    """
    run = threading.Thread.run

    def run_in_mode(self: threading.Thread) -> None:
        with _Mode():
            run(self)

    cuda_functions: dict[str, Any] = {
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "synchronize": lambda device=None: WAITS.update(["synchronize"]),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (8 << 30, 16 << 30),
        "reset_peak_memory_stats": lambda device=None: None,
        "get_device_name": lambda device=None: "stand-in",
        "get_device_capability": lambda device=None: (7, 0),
        "Stream": _Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: _Stream(),
    }
    with ExitStack() as stack:
        stack.callback(
            torch.__future__.set_overwrite_module_params_on_conversion,
            torch.__future__.get_overwrite_module_params_on_conversion(),
        )
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameters move to the device by replacement
        # The threads that load weights would be started outside of this block.
        stack.enter_context(patch.dict("os.environ", HF_DEACTIVATE_ASYNC_LOAD="1"))
        stack.enter_context(patch.object(threading.Thread, "run", run_in_mode))
        for name, function in cuda_functions.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        for values, value in ((_devices, device), (_max_tensor_bytes, max_tensor_bytes)):
            values.append(value)
            stack.callback(values.pop)
        stack.enter_context(patch.object(torch, "Event", _Event))
        # Only with a GPU has torch pinned memory.
        stack.enter_context(
            patch.object(runtime_device, "empty_pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))
        )
        stack.enter_context(patch.object(torch.mps, "synchronize", lambda: WAITS.update(["synchronize"])))
        stack.enter_context(_Mode())
        WAITS.clear()
        yield WAITS

"""A GPU that is not there: it computes on the CPU, and counts what a real one would be told.

Tensors "on" it hold a CPU tensor, and say `cuda:0` when they are asked for their device. So code that chooses
its way by the device chooses the GPU's, with real numbers, and the counts are the same on every machine.

A launch is an ATen operation that neither returns a view nor only allocates. A few of these are several
kernels on a real GPU (`topk`, `nonzero`, sums into indexed places). A wait is what makes the host stand still
until the GPU has caught up: a number that is read (`item`, `if`), an operation whose output has a size that
depends on numbers (`nonzero`, a mask as an index), a copy between the two, either way, and `synchronize`.
Pinned memory needs a real GPU, so no copy here is spared its wait.

What PyTorch chooses in C++ it chooses as for a CPU. RMS norm is the one such choice that shows in the counts
of our models, and is corrected: one operation each way.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
LAUNCH = "launch"
READING = {"_local_scalar_dense", "is_nonzero", "equal"}
SIZED_BY_NUMBERS = {
    "nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2", "bincount",
}  # fmt: skip
TAKING_INDICES = {
    "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put",
}  # fmt: skip
COPYING = {"_to_copy", "copy_"}
LAUNCHING_NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "detach",
    "alias", "lift", "lift_fresh", "_unsafe_view", "_reshape_alias", "is_same_size", "result_type",
}  # fmt: skip


class GpuTensor(Tensor):
    """A tensor on the pretended GPU. PyTorch's C++ takes it for one on the CPU, so autograd needs no GPU.

    Attributes:
        held: its numbers.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        """Of a tensor on the CPU."""
        found = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=CPU
        )
        found.held = held.detach()
        return found

    device = property(lambda _: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As a tensor's, where C++ would see no difference between the devices."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        found = self.cpu() if device is not None and device.type == "cpu" else self
        return found if dtype is None else Tensor.to(found, dtype)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """A copy on the host."""
        PretendedGpu.running.note("copy to host")
        return self.detach().held.clone()  # type: ignore[attr-defined, no-any-return]

    def tolist(self) -> Any:
        """Its numbers."""
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """As a real one's.

        Raises:
            TypeError: always.
        """
        raise TypeError("a tensor on a GPU has no array")

    def data_ptr(self) -> int:
        """Of its numbers."""
        return self.held.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of PretendedGpu.on()")


class PretendedGpu(TorchDispatchMode):
    """Runs and counts the operations on `GpuTensor`s.

    Args:
        code: the folder of the code that is watched, to name the lines that launch and wait.

    Attributes:
        counts: by stage, what it was (`LAUNCH` or a kind of wait), operation and line.
        n_views: operations that launch nothing, and only cost the host time.
    """

    running: PretendedGpu

    def __init__(self, code: Path) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, str, str]] = Counter()
        self.n_views = 0
        self._since_mark: Counter[tuple[str, str, str]] = Counter()
        self._code = f"{code}/"

    @contextmanager
    def on(self) -> Iterator[None]:
        """While it is on, there is a device `cuda:0`."""
        PretendedGpu.running = self
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) then copies where it is seen
        try:
            with (
                mock.patch.object(torch.cuda, "_lazy_init"),
                mock.patch.object(torch.cuda, "synchronize", self._synchronize),
                mock.patch.object(torch.cuda, "max_memory_allocated", return_value=0),
                mock.patch.object(torch, "rms_norm", _rms_norm_of_shape),
                self,
            ):
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)

    def clear(self) -> None:
        """Begins to count anew."""
        self.counts.clear()
        self._since_mark.clear()
        self.n_views = 0

    def end_stage(self, stage: str) -> None:
        """What was counted since the last stage ended belongs to this one."""
        self.counts.update({(stage, *what): n for what, n in self._since_mark.items()})
        self._since_mark.clear()

    def note(self, what: str, operation: str = "") -> None:
        """Counts a launch or a wait."""
        self._since_mark[what, operation, self._line()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        is_on_way_back = torch._C._current_graph_task_id() != -1  # where autograd makes zeros "on the CPU"
        device = kwargs.get("device")
        is_made_here = device is not None and (torch.device(device).type == "cuda" or is_on_way_back)
        tensors = [one for one in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(one, Tensor)]
        of_host = [one for one in tensors if not isinstance(one, GpuTensor) and one.dim()]
        if not is_made_here and not any(isinstance(one, GpuTensor) for one in tensors):
            return func(*args, **kwargs)
        if of_host and not is_on_way_back:
            if name not in TAKING_INDICES | COPYING:
                raise RuntimeError(f"{func} of tensors on two devices")
            for _ in of_host:
                self.note("copy to device")
        self._count(func, name, tensors, is_copy=bool(of_host) and name in COPYING)
        if is_made_here:
            kwargs["device"] = CPU
        held, held_kwargs = pytree.tree_map_only(GpuTensor, lambda one: one.held, (args, kwargs))
        found = func(*held, **held_kwargs)
        if name == "_to_copy" and found is held[0]:
            found = found.clone()
        return return_and_correct_aliasing(func, args, kwargs, pytree.tree_map_only(Tensor, GpuTensor, found))

    def _count(self, func: Any, name: str, tensors: list[Tensor], is_copy: bool) -> None:
        if name in READING:
            self.note("read a number")
            return
        if name in SIZED_BY_NUMBERS:
            self.note("size depends on numbers", name)
        if name in TAKING_INDICES and any(one.dtype in (torch.bool, torch.uint8) for one in tensors[1:]):
            self.note("mask as index", name)
        returned = [one.alias_info for one in func._schema.returns]
        is_view = bool(returned) and all(one is not None and not one.is_write for one in returned)
        if is_view or is_copy or name in LAUNCHING_NOTHING:
            self.n_views += 1
        else:
            self.note(LAUNCH, name)

    def _synchronize(self, *_: Any) -> None:
        self.note("synchronize")

    def _line(self) -> str:
        """The innermost line of the watched code."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(self._code):
            frame = frame.f_back
        if frame is None:
            return "elsewhere"
        return f"{frame.f_code.co_filename.removeprefix(self._code)}:{frame.f_lineno}"


@torch.library.custom_op("pretended_gpu::rms_norm", mutates_args=())
def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """RMS norm as a GPU has it, one operation each way; on a CPU, PyTorch composes it of many."""
    return x * (x * x).mean(-1, keepdim=True).add(epsilon).rsqrt() * gain


def _rms_norm_of_shape(x: Tensor, shape: Any, gain: Tensor, epsilon: float) -> Tensor:
    """As `torch.rms_norm` is called."""
    return rms_norm(x, gain, epsilon)


@torch.library.custom_op("pretended_gpu::rms_norm_gradient", mutates_args=())
def _rms_norm_gradient(gradient: Tensor, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    inverse = (x * x).mean(-1, keepdim=True).add(epsilon).rsqrt()
    scaled = gradient * gain * inverse
    return scaled - x * (scaled * x).mean(-1, keepdim=True) * inverse * inverse


def _keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.x, ctx.gain, ctx.epsilon = inputs


def _gradient_of_inputs(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _rms_norm_gradient(gradient, ctx.x, ctx.gain, ctx.epsilon), None, None


rms_norm.register_autograd(_gradient_of_inputs, setup_context=_keep_inputs)

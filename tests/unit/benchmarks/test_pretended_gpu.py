"""The GPU that is not there: what it computes, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.pretended_gpu import GPU, LAUNCH, GpuTensor, PretendedGpu


def counted(work: Callable[[Tensor], object]) -> tuple[int, int]:
    """Launches and waits of some work on a matrix on the device."""
    gpu = PretendedGpu(Path(__file__).parent)
    x = GpuTensor(torch.arange(12.0).view(3, 4))
    with gpu.on():
        work(x)
        gpu.end_stage("work")
    launches = sum(n for key, n in gpu.counts.items() if key[1] == LAUNCH)
    return launches, gpu.counts.total() - launches


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x: x + 1, (1, 0)),
        (lambda x: x.add_(1).mul_(2), (2, 0)),
        (lambda x: x.T[1:].view(3, -1).expand(2, 3, 3), (0, 0)),
        (lambda x: torch.empty(3, device=GPU), (0, 0)),
        (lambda x: torch.zeros(3, device=GPU), (1, 0)),
        (lambda x: x.new_zeros(3), (1, 0)),
        (lambda x: x @ x.T, (1, 0)),
        (lambda x: x[0, 0].item(), (0, 1)),
        (lambda x: bool(x[0, 0] > 1), (1, 1)),
        (lambda x: x.nonzero(), (1, 1)),
        (lambda x: x[x > 3], (2, 1)),
        (lambda x: x[torch.tensor([0, 2])], (1, 1)),
        (lambda x: x[torch.tensor([0, 2], device=GPU)], (1, 1)),
        (lambda x: x[1, 2:], (0, 0)),
        (lambda x: torch.tensor([1.0, 2.0], device=GPU), (0, 1)),
        (lambda x: torch.ones(2).to(GPU), (0, 1)),
        (lambda x: x.to(GPU), (0, 0)),
        (lambda x: x.cpu(), (0, 1)),
        (lambda x: x.to("cpu"), (0, 1)),
        (lambda x: x.double(), (1, 0)),
        (lambda x: x.tolist(), (0, 1)),
        (lambda x: x.copy_(torch.ones(3, 4)), (0, 1)),
        (lambda x: torch.cuda.synchronize(), (0, 1)),
    ],
)  # fmt: skip
def test_launches_and_waits(work: Callable[[Tensor], object], expected: tuple[int, int]) -> None:
    assert counted(work) == expected


def test_its_numbers_are_the_cpus() -> None:
    x, weight = torch.randn(4, 3), torch.randn(5, 3)

    def gradient(x: Tensor, weight: Tensor) -> Tensor:
        x = x.requires_grad_()
        (found,) = torch.autograd.grad((x @ weight.T).softmax(dim=-1).pow(2).sum(), x)
        return found

    with PretendedGpu(Path(__file__).parent).on():
        found = gradient(GpuTensor(x), GpuTensor(weight))
        assert found.device == GPU
        on_host = found.cpu()
    torch.testing.assert_close(on_host, gradient(x, weight))


def test_it_refuses_what_a_gpu_refuses() -> None:
    with PretendedGpu(Path(__file__).parent).on():
        x = GpuTensor(torch.ones(2))
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(2)
        with pytest.raises(TypeError):
            x.numpy()
    with pytest.raises(RuntimeError, match="outside"):
        x + 1


def test_it_names_the_lines() -> None:
    gpu = PretendedGpu(Path(__file__).parent)
    with gpu.on():
        GpuTensor(torch.ones(2)) + 1
        gpu.end_stage("a sum")
    ((stage, what, operation, line),) = gpu.counts
    assert (stage, what, operation) == ("a sum", LAUNCH, "add")
    assert line.startswith("test_pretended_gpu.py:")

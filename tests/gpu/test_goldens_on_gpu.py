"""The reference's answers against the engine's on a GPU: the tests of the CPU, on another device."""

from __future__ import annotations

import torch

from tests.golden.test_goldens_in_process import engine, test_answer_agrees_with_golden

__all__ = ["test_answer_agrees_with_golden"]


def test_everything_lies_on_the_gpu(device: str) -> None:
    running = engine("tiny-a", ("resid_delta_mlp",), device)
    layers = [layer for one in running.autoencoders for layer in one.layers.values()]
    tensors = [*running.decoder.weights.tensors(), *(layer.directions for layer in layers)]
    assert {one.device for one in tensors} == {torch.device(device)}

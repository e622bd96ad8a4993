"""The floor: what transformers' own model takes for one forward and one backward pass.

The weights are frozen and the gradient flows from the difference of two logits at the last token to the input
embeddings. A debug request cannot do with less, and everything beyond is ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.prompts import Prompt

hugging_face: Any = transformers  # its Auto classes have no types


class Floor:
    """The model in this process, with the same weights, threads and type as the server's.

    Args:
        folder: of the model.
        device: where it runs.
        dtype: the type it computes in.
        n_threads: CPU threads.
        tf32: whether products of float32 matrices may be rounded to TensorFloat-32, on a GPU.
    """

    def __init__(self, folder: Path, device: str, dtype: torch.dtype, n_threads: int, tf32: bool) -> None:
        torch.set_num_threads(n_threads)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        self._device = torch.device(device)
        self._model = hugging_face.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self._device)
        self._model.train(False).requires_grad_(False)
        self._default_attention = self._model.config._attn_implementation  # noqa: SLF001 - the only place

    @property
    def default_attention(self) -> str:
        """The name of the attention that transformers chooses."""
        return str(self._default_attention)

    def seconds(self, prompts: Sequence[Prompt], *, eager: bool = False) -> float:
        """Runs prompts of one length as a batch.

        Args:
            prompts: one or more.
            eager: with attention written out, so that its probabilities exist, as the service needs them.

        Returns:
            How long it took.
        """
        attention = "eager" if eager else self._default_attention
        if self._model.config._attn_implementation != attention:  # noqa: SLF001
            self._model.set_attn_implementation(attention)
        ids = torch.tensor([one.token_ids for one in prompts], device=self._device)
        self._wait()
        start = time.perf_counter()
        embeddings = self._model.get_input_embeddings()(ids).requires_grad_()
        last_logits = self._model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
        objective = sum(
            row[prompt.target_id] - row[prompt.distractor_id]
            for row, prompt in zip(last_logits, prompts, strict=True)
        )
        torch.autograd.grad(objective, embeddings)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        """A GPU works on while Python goes ahead."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

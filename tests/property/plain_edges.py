"""Scores of edges by a second way: each reader has a copy of the stream, which autograd differentiates by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import LossConfig
from torch import Tensor
from transformers import PreTrainedModel

from tests.property.plain_model import PlainModel, Seen


class SplitModel(PlainModel):
    """A decoder whose readers read the stream plus something of their own, which is zero [T, d] each."""

    def __init__(self, reference: PreTrainedModel, n_tokens: int) -> None:
        super().__init__(reference)
        n_heads = self.n_heads + 2 * self.n_groups
        self.of_heads = [self._zeros(n_heads, n_tokens) for _ in range(self.n_layers)]
        self.of_mlps = [self._zeros(1, n_tokens) for _ in range(self.n_layers)]
        self.of_logits = self._zeros(1, n_tokens)

    def _zeros(self, n_readers: int, n_tokens: int) -> Tensor:
        return torch.zeros(n_readers, n_tokens, self.d_model, dtype=torch.float64, requires_grad=True)

    def queries_keys_values(
        self, layer: int, x: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        kinds = [(kind, head) for kind in range(3) for head in range((self.n_heads, self.n_groups)[kind > 0])]
        found: list[list[Tensor]] = [[], [], []]
        for (kind, head), own in zip(kinds, self.of_heads[layer], strict=True):
            copy = x + own
            if self.config.model_type == "olmo2":  # whose norm of all heads reads what each of them has read
                name = f"{self.names['layer'].format(layer)}self_attn.{'qkv'[kind]}_proj"
                made = self.linear(copy, name).unflatten(-1, (-1, self.d_head))
            else:
                made = super().queries_keys_values(layer, copy, self.scale(copy))[kind]
            found[kind].append(made[:, :, head])
        q, k, v = (torch.stack(one, dim=2) for one in found)
        if self.config.model_type == "olmo2":
            prefix, half = self.names["layer"].format(layer), self.attention_scale**0.5
            q = self.rotated(self.normed_heads(q, f"{prefix}self_attn.q_norm"), layer) * half
            k = self.rotated(self.normed_heads(k, f"{prefix}self_attn.k_norm"), layer) * half
        return q, k, v

    def mlp(self, layer: int, x: Tensor, tap: Callable[..., Tensor] | None = None) -> Tensor:
        return super().mlp(layer, x + self.of_mlps[layer], tap)

    def writes(self, seen: Seen) -> Tensor:
        """What all writers add to the stream [writers, T, d]."""
        found = [seen[HookPoint.RESID_POST_EMB, None]]
        for layer in range(self.n_layers):
            v_out = seen[HookPoint.ATTN_V_OUT, layer][0]
            of_heads = torch.einsum("qhe,hed->hqd", v_out, self.out_weights(layer))
            found.append(of_heads * self.times_behind(seen, layer, "attn"))
            found.append(seen[HookPoint.RESID_DELTA_MLP, layer])
        return torch.cat(found).detach()

    def loss(self, seen: Seen, loss: LossConfig) -> Tensor:
        """A direction, or a difference of logits before their cap, the final norm's scale held constant."""
        last = HookPoint.RESID_POST_MLP, self.n_layers - 1
        if (along := loss.direction) is not None:
            spot, vector = (along.hook_point, along.layer_index), torch.tensor(along.vector).double()
            x = seen[spot] + self.of_logits if spot == last else seen[spot]
            return x[0, -1] @ vector
        x = seen[last] + self.of_logits
        scale = seen[HookPoint.RESID_LN_F_SCALE, None].detach()
        logits = (self.norm(x, scale, self.names["final_norm"]) @ self.unembedding.T)[0, -1]
        distractors = logits[list(loss.distractor_tokens)]
        return logits[list(loss.target_tokens)].mean() - distractors.mean()


def plain_edges(
    reference: PreTrainedModel,
    token_ids: tuple[int, ...],
    baselines: Sequence[tuple[int, ...]],
    loss: LossConfig,
    n_steps: int = 1,
) -> Tensor:
    """Scores of all pairs [writers, readers], 0 where the writer does not come first."""
    model = SplitModel(reference, len(token_ids))
    seen, others = model.run(token_ids), [model.run(one) for one in baselines]
    difference = model.writes(seen) - torch.stack([model.writes(one) for one in others]).mean(dim=0)
    place = HookPoint.RESID_POST_EMB, None
    start, end = torch.stack([one[place] for one in others]).mean(dim=0), seen[place]
    copies = [x for pair in zip(model.of_heads, model.of_mlps, strict=True) for x in pair] + [model.of_logits]
    gradients = torch.zeros(sum(len(one) for one in copies), len(token_ids), model.d_model).double()
    for step in range(1, n_steps + 1):
        between = start + step / n_steps * (end - start)
        run = model.run(token_ids, {place: lambda _, x=between: x})  # type: ignore[misc]
        found = torch.autograd.grad(model.loss(run, loss), copies, allow_unused=True, materialize_grads=True)
        gradients += torch.cat(found) / n_steps
    scores = torch.einsum("wtd,rtd->wr", difference, gradients)
    return scores * _comes_first(model)


def _comes_first(model: SplitModel) -> Tensor:
    """Whether a writer comes before a reader [writers, readers], from when each is reached."""
    written, read = [-1.0], []
    for layer in range(model.n_layers):
        written += [layer + 0.2] * model.n_heads + [layer + 0.6]
        read += [float(layer)] * (model.n_heads + 2 * model.n_groups)
        read.append(layer + (0.0 if model.is_parallel else 0.4))
    return torch.tensor(written)[:, None] < torch.tensor([*read, float(model.n_layers)])

"""What the model would predict from the residual stream behind each layer: a logit lens."""

from __future__ import annotations

import torch
from torch import Tensor

from tdb_server.domain.activation_cost import LENSES_TOGETHER
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import LensSpec
from tdb_server.domain.results import LensResult
from tdb_server.engine.rows import Rows
from tdb_server.engine.transfers import download
from tdb_server.model.precision import wide


def lens(rows: Rows, row: int, spec: LensSpec) -> LensResult:
    """Logits of one row's residual streams through the final norm: of chosen tokens, and the likeliest."""
    sites = [(HookPoint.RESID_POST_EMB, None), *((spec.hook_point, layer) for layer in spec.layers)]
    tokens = list(spec.token_indices)
    streams = torch.cat([rows.at_layer(hook_point, layer)[row, tokens] for hook_point, layer in sites])
    decoder, chosen = rows.model.decoder, list(spec.vocabulary_tokens)
    of_chosen: list[Tensor] = []
    top: list[Tensor] = []
    top_ids: list[Tensor] = []
    for part in torch.split(streams, LENSES_TOGETHER):
        logits = decoder.cap(wide(decoder.logits(part)))  # [m, V]
        of_chosen.append(logits[:, chosen])
        values, ids = logits.topk(min(spec.n_top_tokens, logits.shape[1]), dim=1)
        top.append(values)
        top_ids.append(ids)
    chosen_logits, top_logits, token_ids = download([torch.cat(one) for one in (of_chosen, top, top_ids)])
    chosen_logits = chosen_logits.reshape(len(sites), len(tokens), len(chosen))
    return LensResult(
        spec.layers, spec.token_indices, spec.vocabulary_tokens, chosen_logits, token_ids, top_logits
    )

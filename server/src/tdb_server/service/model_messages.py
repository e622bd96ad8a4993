"""What is served, as a message: the model, its limits, and what can be asked of it with what is loaded."""

from __future__ import annotations

import re
from dataclasses import asdict

from transformer_debugger.v1 import model_service_pb2

from tdb_server.domain.axes import autoencoders_of_hook_point, hook_point_of_scalar, is_of_autoencoder
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import AutoencoderInfo, KernelChoice, ModelInfo
from tdb_server.domain.node import NodeType
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.enum_names import DERIVED_SCALARS, HOOK_POINTS, KERNEL_OUTCOMES, SITES
from tdb_server.service.tensor_messages import D_TYPES_BY_NAME

API_VERSION = "v1"
_TOP_K = re.compile(r"topk\((\d+)\)")
_ACTIVATIONS = {
    "relu": model_service_pb2.AUTOENCODER_ACTIVATION_RELU,
    "topk": model_service_pb2.AUTOENCODER_ACTIVATION_TOPK,
    "jumprelu": model_service_pb2.AUTOENCODER_ACTIVATION_JUMPRELU,
}


def model_info_message(info: ModelInfo, limits: Limits, server_version: str) -> model_service_pb2.ModelInfo:
    """The model that is loaded and what can be asked of it.

    Args:
        info: the model.
        limits: the limits in force.
        server_version: version of this software.
    """
    return model_service_pb2.ModelInfo(
        name=info.name,
        digest=info.digest,
        family=info.family,
        n_layers=info.n_layers,
        d_model=info.d_model,
        n_heads=info.n_heads,
        n_key_value_heads=info.n_key_value_heads,
        d_head=info.d_head,
        n_mlp_neurons=info.n_neurons,
        vocab_size=info.vocabulary_size,
        context_length=info.context_length,
        dtype=D_TYPES_BY_NAME[info.dtype],
        autoencoders=[_autoencoder(one) for one in info.autoencoders],
        attention_logit_cap=info.attention_cap,
        final_logit_cap=info.logit_cap,
        attention_windows=[window or 0 for window in info.windows],
        limits=model_service_pb2.Limits(
            **{**asdict(limits), "max_prompt_tokens": limits.prompt_tokens(info.context_length)}
        ),
        derived_scalar_types=[DERIVED_SCALARS.numbers[one] for one in offered_derived_scalars(info)],
        ablatable_location_types=[HOOK_POINTS.numbers[one] for one in ablatable_hook_points(info)],
        api_version=API_VERSION,
        server_version=server_version,
        default_top_and_bottom_k=limits.default_top_and_bottom_k,
        kernels=[_kernel(one) for one in info.kernels],
    )


def put_conventions(message: model_service_pb2.ModelInfo, tokenizer: Tokenizer) -> None:
    """Says which token begins a text, whether prompts get it, and how chats are written."""
    if (template := tokenizer.chat_template) is not None:
        message.chat_template.source = template.source
        message.chat_template.special_tokens.update(template.special_tokens)
    message.adds_bos = tokenizer.adds_bos
    if tokenizer.bos_token_id is not None:
        message.bos_token_id = tokenizer.bos_token_id
        (message.bos_token,) = tokenizer.token_strings([tokenizer.bos_token_id])


def offered_derived_scalars(info: ModelInfo) -> list[DerivedScalar]:
    """The derived scalars whose component is there."""
    offered = [
        one
        for one in DerivedScalar
        if (hook_point := hook_point_of_scalar(one) or one.declared.hook_point) is None
        or _is_there(hook_point, info)
    ]
    if info.autoencoder(NodeType.ATTENTION_AUTOENCODER_LATENT) is None:
        offered.remove(DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS)
    return offered


def ablatable_hook_points(info: ModelInfo) -> list[HookPoint]:
    """The hook points whose cells can be set: all that are there."""
    return [hook_point for hook_point in HookPoint if _is_there(hook_point, info)]


def _is_there(hook_point: HookPoint, info: ModelInfo) -> bool:
    if hook_point in info.absent_hook_points:
        return False
    return not is_of_autoencoder(hook_point) or len(autoencoders_of_hook_point(hook_point, info)) == 1


def _autoencoder(info: AutoencoderInfo) -> model_service_pb2.AutoencoderInfo:
    top_k = _TOP_K.fullmatch(info.activation)
    return model_service_pb2.AutoencoderInfo(
        site=SITES.numbers[info.site],
        n_latents=info.n_latents,
        activation=_ACTIVATIONS["topk" if top_k else info.activation],
        k=int(top_k[1]) if top_k else None,
        layer_indices=info.layers,
        input_norm=(
            model_service_pb2.AUTOENCODER_INPUT_NORM_LAYER_NORM
            if info.norms_inputs
            else model_service_pb2.AUTOENCODER_INPUT_NORM_NONE
        ),
        notes=[
            model_service_pb2.LatentNotes(layer_index=one.layer_index, link=one.link, labels=dict(one.labels))
            for one in info.notes
        ],
    )


def _kernel(choice: KernelChoice) -> model_service_pb2.KernelChoice:
    return model_service_pb2.KernelChoice(
        operation=choice.operation,
        chosen=choice.chosen,
        is_configured=choice.is_configured,
        trials=[
            model_service_pb2.KernelTrial(
                name=one.name, seconds=one.seconds, outcome=KERNEL_OUTCOMES.numbers[one.outcome]
            )
            for one in choice.trials
        ],
    )

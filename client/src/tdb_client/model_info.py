"""The model that a server holds, and what can be asked of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from transformer_debugger.v1 import model_service_pb2
from transformer_debugger.v1.activation_pb2 import ActivationLocationType
from transformer_debugger.v1.call_pb2 import Priority
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType
from transformer_debugger.v1.tensor_pb2 import DType

from tdb_client.chat import ChatTemplate
from tdb_client.names import enum_name
from tdb_client.nodes import Node, NodeType
from tdb_client.token_text import one_line

_LATENTS: Mapping[str, NodeType] = {
    "mlp_post_act": "mlp_autoencoder_latent",
    "resid_delta_mlp": "mlp_autoencoder_latent",
    "resid_delta_attn": "attention_autoencoder_latent",
    "attn_v_out": "attention_autoencoder_latent",
    "resid_post_attn": "resid_post_attn_autoencoder_latent",
    "resid_post_mlp": "resid_post_mlp_autoencoder_latent",
    "mlp_transcoder": "mlp_transcoder_latent",
}
"""What latents of each site are called as nodes."""

_DEBUG_ARGUMENTS: Mapping[NodeType, tuple[str, str]] = {
    "mlp_autoencoder_latent": ("mlp", "autoencoder_latent"),
    "mlp_transcoder_latent": ("mlp", "transcoder_latent"),
    "attention_autoencoder_latent": ("attention", "autoencoder_latent"),
    "resid_post_attn_autoencoder_latent": ("residual_stream", "post_attn_latent"),
    "resid_post_mlp_autoencoder_latent": ("residual_stream", "post_mlp_latent"),
}

_WEB_ADDRESS = re.compile(r"https?://[^\s<>\"'`\\]+")
"""What may become a link to click on. Others, such as `javascript:`, are dropped."""


@dataclass(frozen=True, slots=True)
class AutoencoderInfo:
    """Autoencoders of one site and size.

    Attributes:
        site: where they read and write, such as `mlp_post_act`, `resid_post_mlp` or `mlp_transcoder`.
        n_latents: latents per layer.
        activation: what makes the latents sparse: `relu`, `topk` or `jumprelu`.
        k: for top-k, how many latents of a token may be active; else None.
        layers: the layers that have one.
        input_norm: what is done to inputs before they are read: `none` or `layer_norm`; `unspecified` by
            servers that do not say.
        links: by layer, the http or https address of a page about a latent, in which {latent} stands for its
            number.
        labels: by layer, labels of latents: in one line, with a sign for each character that cannot be
            printed.
    """

    site: str
    n_latents: int
    activation: str
    k: int | None
    layers: tuple[int, ...]
    input_norm: str = "unspecified"
    links: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[int, Mapping[int, str]] = field(default_factory=dict)

    @property
    def debug_argument(self) -> tuple[str, str] | None:
        """What lists its latents in `Client.debug`: an argument and its value, as `mlp`, `transcoder_latent`.

        None for a site that is newer than this library.
        """
        node_type = _LATENTS.get(self.site)
        return None if node_type is None else _DEBUG_ARGUMENTS[node_type]

    def link(self, layer: int, latent: int) -> str | None:
        """The address of a page about a latent; None where there is none. Nothing is fetched."""
        link = self.links.get(layer)
        return None if link is None else link.replace("{latent}", str(latent))


@dataclass(frozen=True, slots=True)
class Limits:
    """Every limit in force, as in the protos."""

    max_prompt_tokens: int
    max_sub_requests: int
    max_node_ablations: int
    max_top_and_bottom_k: int
    max_processing_specs: int
    max_request_bytes: int
    max_response_bytes: int
    max_concurrent_calls: int
    max_queue_length: int
    max_activation_bytes: int
    max_call_seconds: float
    chunk_bytes: int
    max_prompt_bytes: int
    max_target_tokens: int
    max_buffered_bytes: int
    max_spool_bytes: int
    max_priority: str
    max_circuit_nodes: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that a server holds.

    Attributes:
        name: under which the server loaded it.
        digest: SHA-256 of weights and autoencoders, in hexadecimal digits.
        family: such as `gpt2`, `llama` or `gemma2`.
        n_layers: layers.
        d_model: channels of the residual stream.
        n_heads: attention heads per layer.
        n_key_value_heads: key/value heads per layer.
        d_head: channels of a head.
        n_mlp_neurons: MLP neurons per layer.
        vocab_size: vocabulary tokens.
        context_length: the most tokens the model can see at once.
        dtype: what it computes in, such as `float32`.
        autoencoders: those loaded.
        limits: the limits in force.
        derived_scalars: derived scalars that can be asked for.
        ablatable_hook_points: places that an AblationSpec may name.
        api_version: version of the interface, such as `v1`.
        server_version: version of the server's software.
        kernels: how a worker computes what can be computed in several ways: `{"rank_tokens": "int8"}`.
        default_k: nodes from each end of a ranking where a message does not say; this library always does.
        adds_bos: whether prompts begin with the beginning-of-text token where requests do not say `add_bos`.
        bos_token_id: that token's vocabulary index; None when the model has none.
        bos_token: that token as text; empty when the model has none.
        chat_template: how chats are written for the model; None when it does not say, or the server is older.
    """

    name: str
    digest: str
    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    n_mlp_neurons: int
    vocab_size: int
    context_length: int
    dtype: str
    autoencoders: tuple[AutoencoderInfo, ...]
    limits: Limits
    derived_scalars: tuple[str, ...]
    ablatable_hook_points: tuple[str, ...]
    api_version: str
    server_version: str
    kernels: dict[str, str]
    default_k: int = 0
    adds_bos: bool = False
    bos_token_id: int | None = None
    bos_token: str = ""
    chat_template: ChatTemplate | None = None

    def label(self, node: Node) -> str | None:
        """What somebody has called a latent; None where nobody has, or where the node is none."""
        found = self._dictionary(node)
        return None if found is None else found.labels.get(node.layer or 0, {}).get(node.index) or None

    def link(self, node: Node) -> str | None:
        """The address of a page about a latent; None where there is none. Nothing is fetched."""
        found = self._dictionary(node)
        return None if found is None else found.link(node.layer or 0, node.index)

    def _dictionary(self, node: Node) -> AutoencoderInfo | None:
        """Whose latent a node is; None where that is not clear, or the node is no latent."""
        found = [
            one
            for one in self.autoencoders
            if node.layer in one.layers and node.type in (_LATENTS.get(one.site), "autoencoder_latent")
        ]
        return found[0] if len(found) == 1 else None


def model_info(message: model_service_pb2.ModelInfo) -> ModelInfo:
    """Reads the model's description."""
    return ModelInfo(
        name=message.name,
        digest=message.digest,
        family=message.family,
        n_layers=message.n_layers,
        d_model=message.d_model,
        n_heads=message.n_heads,
        n_key_value_heads=message.n_key_value_heads,
        d_head=message.d_head,
        n_mlp_neurons=message.n_mlp_neurons,
        vocab_size=message.vocab_size,
        context_length=message.context_length,
        dtype=enum_name(DType, message.dtype),
        autoencoders=tuple(_autoencoder(one) for one in message.autoencoders),
        limits=_limits(message.limits),
        derived_scalars=tuple(enum_name(DerivedScalarType, one) for one in message.derived_scalar_types),
        ablatable_hook_points=tuple(
            enum_name(ActivationLocationType, one) for one in message.ablatable_location_types
        ),
        api_version=message.api_version,
        server_version=message.server_version,
        kernels={one.operation: one.chosen for one in message.kernels},
        default_k=message.default_top_and_bottom_k,
        adds_bos=message.adds_bos,
        bos_token_id=message.bos_token_id if message.HasField("bos_token_id") else None,
        bos_token=message.bos_token,
        chat_template=_chat_template(message.chat_template) if message.HasField("chat_template") else None,
    )


def _chat_template(message: model_service_pb2.ChatTemplate) -> ChatTemplate:
    return ChatTemplate(message.source, dict(message.special_tokens))


def _autoencoder(message: model_service_pb2.AutoencoderInfo) -> AutoencoderInfo:
    return AutoencoderInfo(
        site=enum_name(model_service_pb2.AutoencoderSite, message.site),
        n_latents=message.n_latents,
        activation=enum_name(model_service_pb2.AutoencoderActivation, message.activation),
        k=message.k if message.HasField("k") else None,
        layers=tuple(message.layer_indices),
        input_norm=enum_name(model_service_pb2.AutoencoderInputNorm, message.input_norm),
        links={
            one.layer_index: one.link
            for one in message.notes
            if _WEB_ADDRESS.fullmatch(one.link) and one.link.isprintable()
        },
        labels={
            one.layer_index: {latent: one_line(label) for latent, label in one.labels.items()}
            for one in message.notes
            if one.labels
        },
    )


def _limits(message: model_service_pb2.Limits) -> Limits:
    fields = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    return Limits(**fields | {"max_priority": enum_name(Priority, message.max_priority)})

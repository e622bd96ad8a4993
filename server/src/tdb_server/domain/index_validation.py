"""Checks that an index points at something: a layer, a token, a component that the model has.

Every check yields violations under the path of the field it was given, and knows nothing of the wire. Here
and in the modules beside this one `info` is the model, and `n_tokens` those of the prompt; None where the
prompt itself is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from tdb_server.domain.axes import (
    TOKEN_DIMENSIONS,
    autoencoders_of_hook_point,
    hook_point_axes,
    is_of_autoencoder,
)
from tdb_server.domain.hook_point import NODE_HOOK_POINTS, WHOLE_HOOK_POINTS, HookPoint
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import ActivationIndex
from tdb_server.errors import FieldViolation

_PAIR_HOOK_POINTS = frozenset({HookPoint.ATTN_QK_LOGITS, HookPoint.ATTN_QK_PROBS})


def node_violations(
    node: NodeIndex, info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    """What keeps a node from being one of the model. Its type must be one that can be ablated or traced."""
    if node.pass_type is not PassType.FORWARD:
        yield FieldViolation(
            f"{path}.pass_type", "nodes are ablated and traced in the forward pass", Reason.FIELD_NOT_ALLOWED
        )
    if node.node_type in WHOLE_HOOK_POINTS:
        yield from _whole_node_violations(node, info, n_tokens, path)
        return
    index = ActivationIndex(NODE_HOOK_POINTS[node.node_type], node.layer_index, node.tensor_indices)
    yield from activation_violations(index, info, n_tokens, path, named_by="node_type")


def _whole_node_violations(
    node: NodeIndex, info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    """What keeps a token and a head, or a token and 0, from being a whole head or MLP."""
    yield from layer_violations(node.layer_index, True, info, f"{path}.layer_index")
    if len(node.tensor_indices) != 2:
        description = f"{len(node.tensor_indices)} indices given; 2 are needed"
        yield FieldViolation(f"{path}.tensor_indices", description, Reason.WRONG_NUMBER_OF_INDICES)
        return
    token, component = node.tensor_indices
    yield from range_violations(token, n_tokens, "token", f"{path}.tensor_indices[0]")
    n_components = info.n_heads if node.node_type is NodeType.WHOLE_HEAD else 1
    yield from range_violations(component, n_components, "component", f"{path}.tensor_indices[1]")


def activation_violations(
    index: ActivationIndex,
    info: ModelInfo,
    n_tokens: int | None,
    path: str,
    named_by: str = "activation_location_type",
) -> Iterator[FieldViolation]:
    """What keeps an index from pointing into the model; its field `named_by` names the hook point."""
    hook_point, layer_index, tensor_indices = index.hook_point, index.layer_index, index.tensor_indices
    place_path, layer_path = f"{path}.{named_by}", f"{path}.layer_index"
    indices_path = f"{path}.tensor_indices"
    wrong_layer = list(layer_violations(layer_index, hook_point.is_per_layer, info, layer_path))
    yield from wrong_layer
    known_layer = None if wrong_layer else layer_index
    is_not_there = list(presence_violations(hook_point, known_layer, info, place_path, layer_path))
    yield from is_not_there

    dimensions = hook_point.dimensions
    if len(tensor_indices) != len(dimensions):
        axes = ", ".join(dimension.value for dimension in dimensions)
        yield FieldViolation(
            indices_path,
            f"{len(tensor_indices)} indices given; {len(dimensions)} are needed ({axes})",
            Reason.WRONG_NUMBER_OF_INDICES,
        )
        return
    has_no_size = is_of_autoencoder(hook_point) and any(one.field == place_path for one in is_not_there)
    sizes = None if has_no_size else hook_point_axes(hook_point, info, n_tokens or 0)
    out_of_range = False
    for i, (cell, dimension) in enumerate(zip(tensor_indices, dimensions, strict=True)):
        if cell is None:
            continue
        is_token = dimension in TOKEN_DIMENSIONS
        size = None if sizes is None or (is_token and n_tokens is None) else sizes[i]
        what = "token" if is_token else dimension.value.removesuffix("s").replace("_", " ")
        for violation in range_violations(cell, size, what, f"{indices_path}[{i}]"):
            out_of_range = True
            yield violation
    if hook_point in _PAIR_HOOK_POINTS and not out_of_range:
        window = info.windows[known_layer] if info.windows and known_layer is not None else None
        yield from _masked_cell(tensor_indices, window, indices_path)


def layer_violations(
    layer_index: int | None, is_per_layer: bool, info: ModelInfo, path: str
) -> Iterator[FieldViolation]:
    """A layer that is missing, that there is not, or that must not be given."""
    if not is_per_layer:
        if layer_index is not None:
            yield FieldViolation(path, "has no layers, so no layer may be given", Reason.FIELD_NOT_ALLOWED)
    elif layer_index is None:
        yield FieldViolation(path, "a layer is needed", Reason.FIELD_REQUIRED)
    elif not 0 <= layer_index < info.n_layers:
        yield FieldViolation(
            path,
            f"there is no layer {layer_index}; layers are 0 to {info.n_layers - 1}",
            Reason.LAYER_OUT_OF_RANGE,
        )


def presence_violations(
    hook_point: HookPoint, layer_index: int | None, info: ModelInfo, named_by: str, layer_path: str
) -> Iterator[FieldViolation]:
    """A hook point that the model does not have, or an autoencoder that is not loaded or not said which.

    Args:
        layer_index: the layer; None for every layer.
        named_by: the field that names the hook point.
        layer_path: the field of the layer.
    """
    yield from absence_violations(hook_point, info, named_by)
    if not is_of_autoencoder(hook_point):
        return
    loaded = autoencoders_of_hook_point(hook_point, info)
    sites = ", ".join(one.site.value for one in info.autoencoders) or "none"
    if not loaded:
        yield FieldViolation(
            named_by,
            f"needs an autoencoder that is not loaded (loaded: {sites})",
            Reason.AUTOENCODER_NOT_LOADED,
        )
    elif len(loaded) > 1:
        yield FieldViolation(
            named_by,
            f"several autoencoders are loaded ({sites}); say which is meant, by its own type",
            Reason.AUTOENCODER_AMBIGUOUS,
        )
    elif layer_index is not None and layer_index not in loaded[0].layers:
        layers = ", ".join(str(layer) for layer in loaded[0].layers)
        yield FieldViolation(
            layer_path,
            f"the autoencoder of {loaded[0].site.value} covers layers {layers}, not {layer_index}",
            Reason.AUTOENCODER_NOT_LOADED,
        )


def absence_violations(hook_point: HookPoint, info: ModelInfo, path: str) -> Iterator[FieldViolation]:
    """A hook point that other models have."""
    if hook_point in info.absent_hook_points:
        yield FieldViolation(
            path,
            f"there is no {hook_point.value} in a {info.family} model such as this one",
            Reason.NOT_IN_THIS_MODEL,
        )


def range_violations(index: int, size: int | None, what: str, path: str) -> Iterator[FieldViolation]:
    """An index below 0 or past the end; a size of None is not known."""
    if index < 0:
        yield FieldViolation(
            path, f"{what} {index} is negative; indices are counted from 0", Reason.TENSOR_INDEX_OUT_OF_RANGE
        )
    elif size is not None and index >= size:
        yield FieldViolation(
            path,
            f"there is no {what} {index}; there are {size}, counted from 0",
            Reason.TENSOR_INDEX_OUT_OF_RANGE,
        )


def _masked_cell(
    tensor_indices: tuple[int | None, ...], window: int | None, path: str
) -> Iterator[FieldViolation]:
    query, key = tensor_indices[:2]
    if query is None or key is None:
        return
    if window is not None and key <= query - window:
        yield FieldViolation(
            path,
            f"token {query} cannot attend to token {key}: this layer attends to the last {window} tokens, "
            "the own one among them",
            Reason.MASKED_ATTENTION_CELL,
        )
    if key > query:
        yield FieldViolation(
            path,
            f"token {query} cannot attend to token {key}, which comes after it",
            Reason.MASKED_ATTENTION_CELL,
        )

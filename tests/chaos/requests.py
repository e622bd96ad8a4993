"""Sound debug requests, from tiny ones to those that keep a worker busy."""

from __future__ import annotations

from transformer_debugger.v1.ablation_pb2 import NodeAblation
from transformer_debugger.v1.node_pb2 import NODE_TYPE_MLP_NEURON, NodeIndex
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, DebugSubRequest

LONG_PROMPT = " the" * 60
"""Nearly all of the fixture's context."""


def debug_request(
    prompt: str = "the cat sat on the",
    n_sub_requests: int = 1,
    k: int = 5,
    ablated_neurons: tuple[int, ...] = (),
) -> DebugRequest:
    ablations = [
        NodeAblation(
            node_index=NodeIndex(node_type=NODE_TYPE_MLP_NEURON, layer_index=1, tensor_indices=(1, neuron))
        )
        for neuron in ablated_neurons
    ]
    one = DebugSubRequest(prompt=prompt, target_tokens=[" the"], top_and_bottom_k=k, node_ablations=ablations)
    return DebugRequest(sub_requests=[one] * n_sub_requests)


def heavy_request(n_sub_requests: int = 8) -> DebugRequest:
    """Seconds of work for a worker, and megabytes of answer."""
    return debug_request(LONG_PROMPT, n_sub_requests, k=1000)


def endless_request() -> DebugRequest:
    """More work than any test waits for: it is cancelled, or its time is up."""
    return heavy_request(n_sub_requests=64)


VARIED_REQUESTS = (
    debug_request(),
    debug_request(k=50),
    debug_request(n_sub_requests=2, ablated_neurons=(7,)),
    debug_request(" the mat", ablated_neurons=(3, 11)),
    debug_request(LONG_PROMPT, k=20),
)

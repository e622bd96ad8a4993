"""Whether a server knows baselines, circuits and what an ablation does with its value.

An older one skips these fields, as protobuf wants it, and its numbers would look as sound as any. So it is
asked before the first request that has them, and its answers are looked at: behind a balancer the next
server may be another.
"""

from __future__ import annotations

from collections.abc import Sequence

from tdb_client.errors import OlderServerError
from tdb_client.events import Event, Started, Values
from tdb_client.model_info import ModelInfo
from tdb_client.requests import SubRequest


def has_comparison(sub_request: SubRequest) -> bool:
    """Whether a sub-request says what older servers would skip."""
    return (
        bool(sub_request.baseline)
        or sub_request.only_these is not None
        or any(one.value_type != "number" for one in sub_request.ablate)
    )


def knows_circuits(model: ModelInfo) -> bool:
    """Whether the model's server knows circuits, and so all the rest: it says how large they may be."""
    return model.limits.max_circuit_nodes > 0


def check_knows_circuits(model: ModelInfo) -> None:
    """Refuses a server that does not.

    Raises:
        OlderServerError: it is older.
    """
    if not knows_circuits(model):
        raise OlderServerError(
            f"the server, version {model.server_version}, does not know baselines, circuits, and ablations to"
            " other than numbers; it would skip them and answer another question. Upgrade it"
        )


def check_compared(event: Event, sub_requests: Sequence[SubRequest]) -> None:
    """Refuses an answer that does not confirm that all that was asked for was done.

    Raises:
        OlderServerError: it does not.
    """
    match event:
        case Started():
            done = all(
                len(one.baseline) == len(baselines)
                and {each.value_type for each in one.ablate}
                <= {each.value_type for each in ablations} | {"number"}
                for one, baselines, ablations in zip(
                    sub_requests, event.baselines, event.ablations, strict=True
                )
            )
        case Values(sub_request_index=index, circuit=None):
            done = sub_requests[index].only_these is None
        case _:
            return
    if not done:
        raise OlderServerError(
            "the answer does not say that baselines, circuits or values of ablations were looked at: it comes"
            " from an older server than was asked before. Upgrade that"
        )

"""What the workbench shows of a node's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdb_server.domain.node import NodeType
from tdb_server.examples import histogram

if TYPE_CHECKING:
    from tdb_server.examples.reading import Example, ExampleFolder


def node_examples(
    folder: ExampleFolder, node_type: NodeType, layer: int, index: int
) -> dict[str, Any] | None:
    """Where texts activate a node; None where no examples of it were made. Reads files.

    A head's activation at a token is the most that it moves there from one token; its `attended_to` is which
    one that is at the peak. The first token of a text has no part in peaks, nor in histograms.

    Returns:
        As JSON: `examples`, the strongest first, `lowest` (of neurons) and `random`, each a list of `tokens`
        with `text` and `activation`, and the `peak`, which token it is; a `histogram` of activations that are
        not 0, with `edges`, one more than `counts`; `n_texts`; and `fraction_active`, the part above 0.

    Raises:
        ConfigurationBroken: a file is damaged.
    """
    if not folder.has(node_type, layer, index):
        return None
    record = folder.record(node_type, layer, index)
    counts = histogram.without_zeros(record.counts)
    (filled,) = counts.nonzero()
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    n_active = int(record.counts[histogram.ZERO + 1 :].sum())
    return {
        "examples": [_shown(one) for one in record.top],
        "lowest": [_shown(one) for one in record.lowest],
        "random": [_shown(one) for one in record.at_random],
        "histogram": {
            "edges": histogram.edges()[first : last + 1] if last else [],
            "counts": counts[first:last].tolist(),
        },
        "n_texts": folder.index.n_texts,
        "fraction_active": n_active / max(int(record.counts.sum()), 1),
    }


def _shown(example: Example) -> dict[str, Any]:
    activations = example.activations
    if example.attended_to is not None:
        pairs = example.pairs()
        pairs[:, 0] = 0
        activations = pairs.max(axis=1)
    tokens = zip(example.tokens, activations.tolist(), strict=True)
    shown: dict[str, Any] = {
        "tokens": [{"text": text, "activation": activation} for text, activation in tokens],
        "peak": example.token,
    }
    return shown if example.attended_to is None else {**shown, "attended_to": example.attended_to}

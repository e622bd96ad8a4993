"""What `tdb-server examples` was told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tdb_server.domain.node import NodeType
from tdb_server.flags import at_least, flag, name_list, one_of, paths, zero_or_more_seconds

NODE_TYPES = [
    one.value
    for one in NodeType
    if one in (NodeType.MLP_NEURON, NodeType.ATTENTION_HEAD)
    or (one.is_latent and one is not NodeType.AUTOENCODER_LATENT)
]


def _node_types(text: str) -> tuple[str, ...]:
    names: tuple[str, ...] = name_list(text)
    return tuple(one_of(*NODE_TYPES)(name) for name in names)


@dataclass(frozen=True, slots=True)
class ExamplesSettings:
    """What to look for top examples of, and in what.

    Attributes:
        texts, out: are needed.
        nodes: types of nodes; None for all that the model has.
        max_texts: None for all of the file.
        save_seconds: None to save after every few batches.
    """

    texts: Path | None = flag(
        None,
        Path,
        "FILE",
        'texts: {"text": "..."} a line in .jsonl files, else a text a line',
        title="what to read",
    )
    max_texts: int | None = flag(None, at_least(1), "N", "stop after so many texts (default: all)")
    out: Path | None = flag(None, Path, "FOLDER", "folder to make; one that was begun is gone on with")
    model: str | None = flag(
        None, str, "PATH|NAME", "as for serve (default: SmolLM2-135M-Instruct)", title="of which model"
    )
    autoencoders: tuple[Path, ...] = paths(
        "FOLDER", "autoencoder or transcoder, as for serve; may be given several times", "--autoencoder"
    )
    dtype: str = flag("float32", one_of("auto", "float32", "float64", "bfloat16"), "TYPE", "of the weights")
    device: str = flag("auto", str, "DEVICE", "auto, cpu or cuda:N")
    n_threads: int | None = flag(None, at_least(1), "N", "CPU threads (default: all cores)", name="--threads")
    nodes: tuple[str, ...] | None = flag(
        None,
        _node_types,
        "LIST",
        f"types of nodes, separated by commas: {', '.join(NODE_TYPES)} (default: all that there are)",
        title="what to keep of each node",
    )
    k: int = flag(20, at_least(1), "N", "strongest examples")
    n_lowest: int = flag(
        5, at_least(0), "N", "examples with the lowest activations, of neurons", name="--lowest"
    )
    n_random: int = flag(5, at_least(0), "N", "examples at random, the same for all nodes", name="--random")
    context: int = flag(64, at_least(2), "N", "tokens of the pieces that texts are cut into")
    seed: int = flag(0, at_least(0), "N", "of what is taken at random")
    save_seconds: float | None = flag(
        60.0, zero_or_more_seconds, "S", "how often to save what was found so far; 0: very often"
    )

"""Top examples are those that all activations, kept and sorted, have; of models written anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.engine.engine import Engine
from tdb_server.engine.example_collector import ExampleCollector
from tdb_server.examples import histogram
from tdb_server.examples.kinds import Amounts, Kind, kept_bytes, kinds_of
from tdb_server.examples.layer_examples import LayerExamples, NodeExamples
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.workers.engine_loading import model_info
from torch import Tensor

from tests.property.plain_dictionaries import dense_latents, read_by
from tests.property.plain_model import PlainModel, Seen
from tests.property.small_models import VOCABULARY_SIZE, SmallModel, small_autoencoder, small_model

AMOUNTS = Amounts(k=4, n_lowest=3, n_random=2, context=7)
N_PIECES = 23
CASES: list[tuple[int, str, tuple[Site, ...]]] = [
    (4, "gpt2", (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN, Site.RESID_POST_MLP)),
    (1, "gemma2", (Site.RESID_DELTA_MLP, Site.ATTN_V_OUT)),
    (N_PIECES, "qwen3", (Site.MLP_TRANSCODER, Site.RESID_POST_ATTN)),
    (5, "gpt_neox", (Site.MLP_TRANSCODER,)),
]


def random_pieces(seed: int) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, AMOUNTS.context, N_PIECES, endpoint=True)
    return [tuple(generator.integers(0, VOCABULARY_SIZE, n).tolist()) for n in lengths]


def of_heads(model: PlainModel, seen: Seen, layer: int) -> Tensor:
    """What heads move between tokens [T, T, H], from the vectors themselves."""
    values = model.for_heads(seen[HookPoint.ATTN_V, layer])[0]  # [T, H, e]
    written = torch.einsum("khe,hed->khd", values, model.out_weights(layer))
    times = model.times_behind(seen, layer, "attn")  # [T, d], of the token written to
    norms = (written[None] * times[:, None, None]).norm(dim=-1)  # [q, k, H]
    return seen[HookPoint.ATTN_QK_PROBS, layer][0] * norms


def activations(
    model: PlainModel, kind: Kind, layer: int, seen: Seen, autoencoders: Sequence[Autoencoder]
) -> Tensor:
    """Of one piece, of every cell and node [cells, n]."""
    if kind.node_type is NodeType.MLP_NEURON:
        return seen[HookPoint.MLP_POST_ACT, layer][0]
    if kind.node_type is NodeType.ATTENTION_HEAD:
        moved = of_heads(model, seen, layer)
        return torch.cat([moved[token, : token + 1] for token in range(len(moved))])
    (own,) = [one for one in autoencoders if one.site.node_type is kind.node_type]
    return dense_latents(own.layers[layer], read_by(model, own.site, seen, layer)[0])


def counted(kind: Kind, n_tokens: int) -> npt.NDArray[np.bool_]:
    """Which cells count: those in which the first token has no part."""
    if not kind.is_of_pairs:
        return np.arange(n_tokens) > 0
    return np.array([key > 0 for query in range(n_tokens) for key in range(query + 1)])


def assert_is_found(found: NodeExamples, node: int, expected: list[tuple[float, int]], floor: float) -> None:
    """A node's examples are the expected ones (peak and piece), best first."""
    expected = [one for one in expected if one[0] > floor]
    n = int(found.is_filled[node].sum())
    assert n == len(expected)
    assert found.is_filled[node, :n].all()
    np.testing.assert_allclose(found.values[node, :n], [value for value, _ in expected], 1e-5, 1e-6)
    assert found.pieces[node, :n].tolist() == [piece for _, piece in expected]


def assert_is_the_plain_one(
    model: SmallModel,
    autoencoders: Sequence[Autoencoder],
    kind: Kind,
    found: LayerExamples,
    pieces: Sequence[tuple[int, ...]],
    at_random: list[int],
) -> None:
    runs = [model.plain.run(piece) for piece in pieces]
    dense = [activations(model.plain, kind, found.layer, seen, autoencoders).float().numpy() for seen in runs]
    places = [counted(kind, len(piece)) for piece in pieces]
    for node in range(kind.n_nodes):
        of_node = [one[:, node] for one in dense]
        peaks = [
            (float(one[where].max()), piece)
            for piece, (one, where) in enumerate(zip(of_node, places, strict=True))
        ]
        assert_is_found(found.top, node, sorted(peaks, key=lambda one: -one[0])[: AMOUNTS.k], kind.floor)
        if found.lowest is not None:
            lows = [
                (float(one[where].min()), piece)
                for piece, (one, where) in enumerate(zip(of_node, places, strict=True))
            ]
            assert_is_found(found.lowest, node, sorted(lows)[: AMOUNTS.n_lowest], -np.inf)
        assert found.at_random.pieces[node].tolist() == at_random
        for examples in (found.top, found.lowest, found.at_random):
            for place in range(0 if examples is None else int(examples.is_filled[node].sum())):
                piece, cell = examples.pieces[node, place], examples.cells[node, place]
                expected = of_node[piece]
                np.testing.assert_allclose(
                    examples.activations[node, place, : len(expected)], expected, 1e-5, 1e-6
                )
                assert examples.activations[node, place, cell] == examples.values[node, place]
                assert places[piece][cell]
        assert found.counts[node].tolist() == counts_of(
            np.concatenate([one[where] for one, where in zip(of_node, places, strict=True)])
        )


def counts_of(numbers: npt.NDArray[np.float32]) -> list[int]:
    edges = np.array(histogram.edges())
    edges[[0, -1]] = -np.inf, np.inf
    counts = [0] * (len(edges) - 1)
    for number in numbers[numbers != 0]:
        side = "right" if number > 0 else "left"
        counts[int(np.searchsorted(edges, number, side)) - 1] += 1
    return [*counts[: histogram.ZERO], int((numbers == 0).sum()), *counts[histogram.ZERO :]]


def collector(engine: Engine) -> tuple[list[Kind], ExampleCollector]:
    kinds = kinds_of(model_info("small", "digest", "float64", engine))
    return kinds, ExampleCollector(engine, kinds, AMOUNTS)


@pytest.mark.parametrize(("batch", "name", "sites"), CASES)
def test_what_all_activations_sorted_have(batch: int, name: str, sites: tuple[Site, ...]) -> None:
    model, pieces = small_model(name), random_pieces(batch)
    autoencoders = [small_autoencoder(name, site, jumps=site is Site.MLP_TRANSCODER) for site in sites]
    kinds, collecting = collector(model.engine(*autoencoders))
    order = np.random.default_rng(batch).permutation(N_PIECES)
    for start in range(0, N_PIECES, batch):
        some = order[start : start + batch]
        collecting.run([pieces[one] for one in some], some.tolist())
    at_random = [2, 9]
    found = list(collecting.found([pieces[one] for one in at_random], at_random))
    assert [one.kind for one in found] == kinds
    assert len(kinds) == 2 + len(sites)
    for one in found:
        layers = list(one.layers)
        assert [layer.layer for layer in layers] == list(one.kind.layers)
        for layer in layers:
            assert_is_the_plain_one(model, autoencoders, one.kind, layer, pieces, at_random)


def test_memory_that_is_told_is_what_is_kept() -> None:
    """Whatever many pieces are run."""
    kinds, collecting = collector(small_model("gpt2").engine(small_autoencoder("gpt2", Site.RESID_POST_MLP)))
    collecting.run(random_pieces(0), range(N_PIECES))
    at_random = sum(
        layer.at_random.activations.nbytes
        for one in collecting.found(random_pieces(0)[:2], [0, 1])
        for layer in one.layers
    )
    n_bytes = at_random + sum(array.nbytes for array in collecting.kept())
    assert n_bytes == kept_bytes(kinds, AMOUNTS, histogram.N_BINS + 1)


def test_of_equal_examples_the_earlier_ones_are_kept() -> None:
    """Whatever order they come in."""
    pieces = [random_pieces(0)[3]] * 9
    _, collecting = collector(small_model("gpt2").engine())
    for piece in (8, 2, 5, 0, 7, 1, 6, 3, 4):
        collecting.run([pieces[piece]], [piece])
    for one in collecting.found([], []):
        for layer in one.layers:
            assert (layer.top.pieces == np.arange(AMOUNTS.k)).all()


def test_what_was_saved_goes_on_as_if_it_had_not_been() -> None:
    pieces, engine = (
        random_pieces(1),
        small_model("llama").engine(small_autoencoder("llama", Site.MLP_POST_ACT)),
    )
    (_, unbroken), (_, first), (_, second) = (collector(engine) for _ in range(3))
    unbroken.run(pieces[:11], range(11))
    first.run(pieces[:11], range(11))
    second.restore(iter([array.copy() for array in first.kept()]))
    for one in (unbroken, second):
        one.run(pieces[11:], range(11, N_PIECES))
    for whole, resumed in zip(unbroken.kept(), second.kept(), strict=True):
        np.testing.assert_array_equal(whole, resumed)


def test_what_is_of_other_nodes_is_not_gone_on_with() -> None:
    _, collecting = collector(small_model("llama").engine())
    arrays = list(collecting.kept())
    with pytest.raises(ValueError, match="shorter"):
        collecting.restore(iter(arrays[:-1]))
    with pytest.raises(ValueError, match="an array is"):
        collecting.restore(iter([arrays[0][:, :1].copy(), *arrays[1:]]))

"""Runs of `tdb-server examples`, and the folders they leave."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tdb_server.command import run
from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    ActivationsSpec,
    DerivedAttentionScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
)
from tdb_server.domain.results import ActivationsResult, DerivedAttentionScalarsResult, NamedResult
from tdb_server.errors import ConfigurationBroken, OverLimit
from tdb_server.examples.files import INDEX_FILE, PIECES_FILE
from tdb_server.examples.histogram import ZERO
from tdb_server.examples.progress_files import ProgressFiles
from tdb_server.examples.reading import Example, ExampleFolder
from tdb_server.examples_settings import ExamplesSettings
from tdb_server.model.progress import no_progress
from tdb_server.settings import parse_settings
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.example_run import make_examples
from tdb_server.workers.messages import Configuration

TINY_MODEL = Path(__file__).parents[2] / "fixtures" / "tiny-a"
AUTOENCODER = TINY_MODEL / "autoencoders" / "mlp_post_act"
FLAGS = (
    f"--model {TINY_MODEL} --autoencoder {AUTOENCODER} --k 4 --lowest 2 --random 3 --context 10 --threads 1 "
    "--save-seconds 0"
)
N_TEXTS = 260
WORDS = [
    "When",
    "Mary",
    "and",
    "John",
    "went",
    "to",
    "the",
    "store",
    "John",
    "gave",
    "a",
    "drink",
    "to",
    "her",
    "old",
    "friend",
    "who",
    "was",
    "not",
    "there",
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> ExamplesSettings:
    folder, of_words = tmp_path_factory.mktemp("examples"), random.Random(3)
    texts = (" ".join(of_words.choices(WORDS, k=of_words.randint(1, 90))) for _ in range(N_TEXTS))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    command = f"examples --texts {folder}/texts.jsonl --out {folder}/unbroken --device cpu {FLAGS}"
    settings = parse_settings(command.split(), {})
    assert isinstance(settings, ExamplesSettings)
    return settings


@pytest.fixture(scope="module")
def unbroken(told: ExamplesSettings) -> Path:
    assert told.out is not None
    make_examples(told, no_progress)
    return told.out


@pytest.fixture
def copied(unbroken: Path, tmp_path: Path) -> Path:
    for path in unbroken.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_to_the_same_folder(
    told: ExamplesSettings, unbroken: Path, tmp_path: Path
) -> None:
    flags = f"--texts {told.texts} --out {tmp_path}/out --device cpu {FLAGS}"
    command = [sys.executable, "-m", "tdb_server", "examples", *flags.split()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    state = tmp_path / "out" / "unfinished" / "state"
    end = time.monotonic() + 120
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / INDEX_FILE).exists()
    seen: list[str] = []
    make_examples(replace(told, out=tmp_path / "out"), lambda stage, _: seen.append(stage))
    assert not any(one.startswith("0 texts") for one in seen)
    assert contents(tmp_path / "out") == contents(unbroken)


def test_a_run_says_how_far_it_is_behind_each_batch(told: ExamplesSettings, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    make_examples(replace(told, out=tmp_path), lambda stage, fraction: seen.append((stage, fraction)))
    first = next(at for at, (stage, _) in enumerate(seen) if " texts, " in stage)
    begun = [(stage, fraction) for stage, fraction in seen[:first] if " tokens, " in stage]
    assert len(begun) >= 3  # four batches at least are read together, and the last is told with its texts
    fractions = [fraction for stage, fraction in seen if " tokens, " in stage]
    assert fractions == sorted(fractions)
    assert 0 < begun[0][1] < begun[-1][1] < seen[first][1] < 1
    counts = [int(stage.split(" texts, ")[-1].split()[0]) for stage, _ in seen if " tokens, " in stage]
    assert counts == sorted(set(counts))


def test_a_run_that_is_stopped_again_and_again(
    told: ExamplesSettings, unbroken: Path, tmp_path: Path
) -> None:
    """Each time after pieces were written that no state knows of."""
    n_stops = 0

    def stop(stage: str, fraction: float) -> None:
        if " texts, " in stage and n_stops < 2:
            raise KeyboardInterrupt

    settings = replace(told, out=tmp_path)
    while n_stops < 2:
        with pytest.raises(KeyboardInterrupt):
            make_examples(settings, stop)
        with (tmp_path / "unfinished" / "pieces").open("ab") as pieces:
            pieces.write(b"torn" * 100)
        n_stops += 1
    make_examples(settings, stop)
    assert contents(tmp_path) == contents(unbroken)


def activations(examples: list[list[int]]) -> list[dict[NodeType, np.ndarray]]:
    """What the engine answers for token ids: a neuron's, a latent's and a head's activations."""
    engine, _ = load_engine(
        Configuration(str(TINY_MODEL), (AUTOENCODER,), "cpu", 0, "float32", 1, "exact"), no_progress
    )
    places = {
        NodeType.MLP_NEURON: HookPoint.MLP_POST_ACT,
        NodeType.MLP_AUTOENCODER_LATENT: HookPoint.ONLINE_MLP_AUTOENCODER_LATENT,
    }
    found = []
    for token_ids in examples:
        everywhere = tuple(range(len(token_ids)))
        specs = {str(i): ActivationsSpec(place, (1,), everywhere) for i, place in enumerate(places.values())}
        of_head = DerivedAttentionScalarsSpec(DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM, 1, 3)
        request = InferenceSubRequest(InferenceSpec(tuple(token_ids)), {**specs, "head": of_head})
        results = [
            event.result
            for _, event in engine.run([Call("a", (request,))], lambda _: False)
            if isinstance(event, NamedResult)
        ]
        own: dict[NodeType, np.ndarray] = {}
        for one in results:
            if isinstance(one, DerivedAttentionScalarsResult):
                own[NodeType.ATTENTION_HEAD] = one.scalars
            elif isinstance(one, ActivationsResult):
                is_neuron = len(own) == 0
                node_type = NodeType.MLP_NEURON if is_neuron else NodeType.MLP_AUTOENCODER_LATENT
                own[node_type] = one.layers[0][1].array[:, 3]
        found.append(own)
    return found


def test_what_is_read_is_what_the_engine_answers(unbroken: Path) -> None:
    folder = ExampleFolder(unbroken)
    pieces = {
        tuple(one["tokens"]): one["token_ids"] for one in pq.read_table(unbroken / PIECES_FILE).to_pylist()
    }
    examples: list[tuple[NodeType, Example]] = []
    for node_type in (NodeType.MLP_NEURON, NodeType.MLP_AUTOENCODER_LATENT, NodeType.ATTENTION_HEAD):
        record = folder.record(node_type, 1, 3)
        assert (len(record.top), len(record.at_random)) == (4, 3)
        assert len(record.lowest) == (2 if node_type is NodeType.MLP_NEURON else 0)
        assert [one.value for one in record.top] == sorted((one.value for one in record.top), reverse=True)
        is_of_pairs = node_type is NodeType.ATTENTION_HEAD
        assert record.counts.sum() == (folder.index.n_pairs if is_of_pairs else folder.index.n_tokens)
        examples += [(node_type, one) for one in (*record.top, *record.lowest, *record.at_random)]
    answers = activations([pieces[one.tokens] for _, one in examples])
    for (node_type, example), answer in zip(examples, answers, strict=True):
        expected = answer[node_type]
        if node_type is NodeType.ATTENTION_HEAD:
            assert example.attended_to is not None
            pairs = example.pairs()
            np.testing.assert_allclose(pairs, np.tril(expected), 1e-4, 1e-5)
            assert pairs[example.token, example.attended_to] == np.float32(example.value)
        else:
            np.testing.assert_allclose(example.activations, expected, 1e-4, 1e-5)
            assert example.activations[example.token] == np.float32(example.value)


def test_latents_that_are_not_active_have_no_examples(unbroken: Path) -> None:
    folder = ExampleFolder(unbroken)
    kind = next(one for one in folder.index.kinds if one.node_type.is_latent)
    for index in range(kind.n_nodes):
        record = folder.record(kind.node_type, 0, index)
        n_active = record.counts[ZERO + 1 :].sum()
        assert len(record.top) == min(4, len(record.top))
        assert (len(record.top) > 0) == (n_active > 0)
        assert all(one.value > 0 for one in record.top)


def test_what_there_is_a_record_of(unbroken: Path) -> None:
    folder = ExampleFolder(unbroken)
    assert folder.has(NodeType.MLP_NEURON, 2, 191)
    assert folder.has(NodeType.MLP_AUTOENCODER_LATENT, 0, 0)
    of_latent = (
        folder.record(one, 0, 5) for one in (NodeType.MLP_AUTOENCODER_LATENT, NodeType.AUTOENCODER_LATENT)
    )
    assert len({tuple(one.counts) for one in of_latent}) == 1
    assert not folder.has(NodeType.MLP_NEURON, 3, 0)
    assert not folder.has(NodeType.MLP_NEURON, 2, 192)
    assert not folder.has(NodeType.ATTENTION_HEAD, 0, -1)
    assert not folder.has(NodeType.MLP_TRANSCODER_LATENT, 0, 0)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"k": 5}, r"^--k: is 5, and was 4 when the run in .* began"),
        ({"context": 11}, r"^--context: is 11, and was 10"),
        ({"n_lowest": 0}, r"^--lowest: is 0, and was 2"),
        ({"seed": 9}, r"^--seed: is 9, and was 0"),
        ({"autoencoders": ()}, r"^--model, --autoencoder: is [0-9a-f]+, and was"),
    ],
)
def test_a_run_goes_on_only_if_it_is_told_the_same(
    told: ExamplesSettings, begun: Path, changes: dict[str, object], refused: str
) -> None:
    before = contents(begun / "unfinished")
    with pytest.raises(ConfigurationBroken, match=refused):
        make_examples(replace(told, out=begun, **changes), no_progress)  # type: ignore[arg-type]
    assert contents(begun / "unfinished") == before


@pytest.fixture(scope="module")
def begun(told: ExamplesSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def stop(stage: str, fraction: float) -> None:
        if " texts, " in stage:
            raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(KeyboardInterrupt):
        make_examples(replace(told, out=folder), stop)
    return folder


def test_a_finished_folder_is_left_alone(told: ExamplesSettings, unbroken: Path) -> None:
    with pytest.raises(ConfigurationBroken, match=r"^--out: .* has examples already"):
        make_examples(told, no_progress)


@pytest.mark.parametrize(
    ("changes", "kind", "refused"),
    [
        (
            {"k": 10**8},
            OverLimit,
            r"take \d+ MiB on cpu beside the model, where \d+ are free; give a",
        ),
        ({"context": 65}, ConfigurationBroken, "^--context: 65 is more than 64"),
        (
            {"nodes": ("mlp_transcoder_latent",)},
            ConfigurationBroken,
            "^--nodes: mlp_transcoder_latent: is not in the model, which has mlp_neuron, att",
        ),
        ({"texts": None}, ConfigurationBroken, "^--texts: is needed"),
        ({"out": None}, ConfigurationBroken, "^--out: is needed"),
    ],
)
def test_what_cannot_be_done_is_refused_first(
    told: ExamplesSettings, tmp_path: Path, changes: dict[str, object], kind: type[Exception], refused: str
) -> None:
    with pytest.raises(kind, match=refused):
        make_examples(replace(told, **{"out": tmp_path / "out", **changes}), no_progress)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_what_is_needed_is_said_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationBroken, match=r"^examples needs `pip install .*\[examples\]'`"):
        run(["examples", "--model", "/nowhere"])


def test_one_run_alone_writes_to_a_folder(told: ExamplesSettings, tmp_path: Path) -> None:
    with (
        ProgressFiles(tmp_path, 10),
        pytest.raises(ConfigurationBroken, match=r"^--out: another run is writing"),
    ):
        make_examples(replace(told, out=tmp_path), no_progress)


def test_texts_without_two_tokens(told: ExamplesSettings, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n")
    settings = replace(told, texts=tmp_path / "texts.txt", out=tmp_path / "out", nodes=("attention_head",))
    with pytest.raises(ConfigurationBroken, match="no text has two tokens"):
        make_examples(settings, no_progress)


def test_only_some_texts_and_nodes(told: ExamplesSettings, tmp_path: Path) -> None:
    index = make_examples(
        replace(told, out=tmp_path, max_texts=3, nodes=("attention_head",), n_random=0), no_progress
    )
    assert index.n_texts == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention_head.parquet",
        INDEX_FILE,
        PIECES_FILE,
    ]
    assert ExampleFolder(tmp_path).record(NodeType.ATTENTION_HEAD, 2, 1).at_random == ()


def test_examples_of_another_model(unbroken: Path) -> None:
    folder = ExampleFolder(unbroken)
    folder.check(model="tiny-a", digest=folder.index.digest)
    with pytest.raises(
        ConfigurationBroken, match=r"digest: the examples are of tiny-a with digest .* has other"
    ):
        folder.check(model="other", digest="0" * 64)


def _without(name: str, field: str) -> str:
    told = json.loads(name)
    del told[field]
    return json.dumps(told)


def test_folders_that_are_not_whole(copied: Path) -> None:
    index = copied / INDEX_FILE
    sound = index.read_text()
    neurons = copied / "mlp_neuron.parquet"
    content = neurons.read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(ConfigurationBroken, match=words):
            ExampleFolder(copied)

    index.unlink()
    refused("^--examples: .*examples.json: No such file.*writes that file last")
    index.write_text(sound.replace('"schema": 1', '"schema": 2'))
    refused("examples.json: schema: is not 1")
    index.write_text(sound[:-9])
    refused("examples.json: ")
    index.write_text(_without(sound, "digest"))
    refused("examples.json: a field is missing or unknown: .*digest")
    index.write_text(sound.replace('"seed": 0', '"seed": 1'))
    refused("parquet: is of another run than examples.json")
    index.write_text(sound)
    neurons.write_bytes(content[:-100])
    refused("mlp_neuron.parquet: ")
    neurons.unlink()
    refused("mlp_neuron.parquet: ")
    neurons.write_bytes(content)
    ExampleFolder(copied)


def test_a_flipped_bit_is_seen(copied: Path) -> None:
    path = copied / "mlp_neuron.parquet"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationBroken, match=r"mlp_neuron\.parquet: is damaged"):
        ExampleFolder(copied).record(NodeType.MLP_NEURON, 0, 0)

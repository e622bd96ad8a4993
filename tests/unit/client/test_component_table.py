"""Heads and MLPs by their sums over all tokens: as a table, a frame, in the terminal; absent token lists."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from tdb_client import DebugSubRequest
from tdb_client.cli import json_output, pages
from tdb_client.cli.arguments import parse
from tdb_client.component_table import component_table
from tdb_client.debug_result import DebugResult, debug_result
from tdb_client.decoding import processing_result
from tdb_client.encoding import debug_request
from tdb_client.events import inference_results
from tdb_client.results import ComponentTotalsResult
from tdb_client.streams import EventReader
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1.derived_scalar_pb2 import DERIVED_SCALAR_TYPE_TOKEN_ATTRIBUTION
from transformer_debugger.v1.result_pb2 import ComponentTotal, NamedResult
from transformer_debugger.v1.result_pb2 import ComponentTotalsResult as Message
from transformer_debugger.v1.tensor_pb2 import D_TYPE_FLOAT32, Tensor

from tests.unit.client.fake_service import debug_results, debug_stream

PLAIN = {
    "resid_post_embedding_norm": np.array(5.0),
    "mlp_write_norm": np.array([1.0, 2.0]),
    "unflattened_attn_write_norm": np.array([[3.0, 4.0], [5.0, 6.0]]),
    "token_attribution": np.array(0.5),
    "mlp_act_times_grad": np.array([-2.0, 0.25]),
    "unflattened_attn_act_times_grad": np.array([[0.0, 1.0], [-3.0, 0.125]]),
    "resid_post_embedding_proj_to_final_residual_grad": np.array(0.1),
    "mlp_write_to_final_residual_grad": np.array([0.2, 0.3]),
    "unflattened_attn_write_to_final_residual_grad": np.array([[0.4, -0.9], [0.6, 0.7]]),
}
COMPONENTS = ("embedding", "L0 mlp", "L0 head 0", "L0 head 1", "L1 mlp", "L1 head 0", "L1 head 1")


def test_every_component_has_its_numbers() -> None:
    table = component_table(PLAIN)
    assert table.components == COMPONENTS
    assert table.layers.tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert table.act_times_grad.tolist() == [0.5, -2, 0, 1, 0.25, -3, 0.125]
    assert table.direct_effect.tolist() == [0.1, 0.2, 0.4, -0.9, 0.3, 0.6, 0.7]
    assert table.components[table.strongest("act_times_grad")[0]] == "L1 head 0"
    assert len(component_table({})) == 0


def test_latents_of_the_stream_stand_beside_the_mlp() -> None:
    latents = {
        "online_resid_post_mlp_autoencoder_write_norm": np.array([7.0, 8.0]),
        "online_resid_post_mlp_autoencoder_act_times_grad": np.array([0.7, 0.8]),
        "online_resid_post_mlp_autoencoder_write_to_final_residual_grad": np.array([0.07, 0.08]),
    }
    table = component_table(PLAIN | latents)
    by_name = dict(zip(table.components, table.act_times_grad.tolist(), strict=True))
    assert by_name["L1 mlp"] == 0.25
    assert by_name["L1 post_mlp latents"] == 0.8


def test_attention_that_is_taken_apart_into_latents() -> None:
    names = {one.replace("unflattened_attn", "online_attention_autoencoder"): x for one, x in PLAIN.items()}
    totals = {one: x.sum(axis=1) if x.ndim == 2 else x for one, x in names.items()}
    table = component_table(totals)
    assert table.components == ("embedding", "L0 mlp", "L0 attention", "L1 mlp", "L1 attention")
    assert table.act_times_grad.tolist() == [0.5, -2, 1, 0.25, -2.875]


def test_as_a_frame() -> None:
    pytest.importorskip("pandas")
    (result,) = debug_results(DebugSubRequest.of("p", " Mary"))
    frame = with_totals(result).to_frame(by="component")
    assert list(frame["component"]) == list(COMPONENTS)
    assert frame["layer"].isna().tolist() == [True, *[False] * 6]
    assert len(result.to_frame()) == len(result.nodes)


def with_totals(result: DebugResult) -> DebugResult:
    return replace(result, totals=PLAIN)


def page(view: pages.View, *results: DebugResult) -> str:
    console = Console(width=100, record=True, file=StringIO())
    show = pages.result_page if len(results) == 1 else pages.comparison_page
    console.print(show(*results, view))  # type: ignore[operator]
    return console.export_text()


def test_in_the_terminal() -> None:
    view = pages.View("act_times_grad", 2, 0, 100, "component")
    (result,) = debug_results(DebugSubRequest.of("p", " Mary"))
    lines = page(view, with_totals(result)).splitlines()
    rows = [one.split()[:3] for one in lines if one.startswith(("L", "embedding"))]
    assert rows == [["L1", "head", "0"], ["L0", "mlp", "1.000"]]
    assert "2 of 7 components, by act times grad over all tokens" in " ".join(" ".join(lines).split())
    assert "older" in page(view, replace(result, totals={}))
    changed = replace(result, totals=PLAIN | {"mlp_act_times_grad": np.array([-2.0, 9.25])})
    text = page(view, with_totals(result), changed)
    assert next(one for one in text.splitlines() if one.startswith("L")).split() == [
        "L1", "mlp", "0.250", "9.250", "+9.000",
    ]  # fmt: skip
    assert "by difference in act times grad over all tokens" in " ".join(text.split())


def test_headings_say_what_is_of_a_difference_from_a_baseline() -> None:
    (result,) = debug_results(DebugSubRequest.of("p", " Mary"))
    plain = with_totals(result)
    compared = replace(plain, baselines=(result.prompt,))
    for by, n_marked in (("act_times_grad", 3), ("write_norm", 3)):
        text = page(pages.View(by, 2, 0, 100, "component"), compared)  # type: ignore[arg-type]
        assert text.count("Δ") == n_marked
        assert "Δ act ×" in text
        assert "Δ direct" in text
    text = page(pages.View("act_times_grad", 2, 0, 100, "component"), compared, compared)
    assert text.count("Δ") == 2
    assert "Δ" not in page(pages.View("write_norm", 2, 0, 100, "component"), plain)


def test_as_json() -> None:
    (result,) = debug_results(DebugSubRequest.of("p", " Mary"))
    (told,) = json_output.debug([with_totals(result)])["sub_requests"]  # type: ignore[misc]
    assert [one["component"] for one in told["result"]["components"]] == list(COMPONENTS)
    assert told["result"]["components"][0]["layer"] is None


def test_on_the_wire() -> None:
    request = debug_request([DebugSubRequest.of("p", " Mary")]).sub_requests[0]
    assert request.component_totals
    assert not request.omit_token_lists
    total = ComponentTotal(
        derived_scalar_type=DERIVED_SCALAR_TYPE_TOKEN_ATTRIBUTION,
        total=Tensor(dtype=D_TYPE_FLOAT32, data=np.float32(0.5).tobytes()),
    )
    found = processing_result(NamedResult(name="componentTotals", component_totals=Message(totals=[total])))
    assert isinstance(found, ComponentTotalsResult)
    assert found.totals["token_attribution"].array == 0.5


def test_an_answer_without_token_lists() -> None:
    reader = EventReader(1)
    about_tokens = range(2, 7)
    messages = debug_stream(service_pb2.DebugRequest(sub_requests=[service_pb2.DebugSubRequest()]))
    events = [event for one in messages for event in reader.read(one)]
    (whole,) = inference_results(events)
    names = [name for place, name in enumerate(whole.results) if place not in about_tokens]
    result = replace(whole, results={name: whole.results[name] for name in names})
    found = debug_result(DebugSubRequest.of("p", " Mary", token_lists=False), result)
    assert set(found.nodes.upvoted_tokens) == set(found.nodes.attended_to) == {None}
    assert page(pages.View("direct_effect", 3, 0, 140), found)
    assert "Mary" in found.to_html()
    json_output.debug([found])
    words = ["debug", "--prompt", "p", "--target", " Mary"]
    assert not parse([*words, "--no-token-lists"]).token_lists
    assert parse(words).token_lists

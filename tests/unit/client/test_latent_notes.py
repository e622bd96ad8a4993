"""Labels of latents, and links to pages about them: strangers wrote both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from tdb_client import (
    AsyncClient,
    AutoencoderInfo,
    Client,
    DebugResult,
    DebugSubRequest,
    ModelInfo,
    Node,
    NotImplementedCallError,
)
from tdb_client.cli import main, pages
from tdb_client.debug_result import with_notes
from tdb_client.model_info import model_info

from tests.unit.client.fake_service import NODES, FakeService, debug_results

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]

LATENT = NODES.index("L1 mlp latent 9 @ 2")
LINK = "https://example.org/1/{latent}"
EVIL = "a\x1b]0;x\x07\n</script><img src=x onerror=alert(1)>\u202e"
TAMED = "a·]0;x· </script><img src=x onerror=alert(1)>·"
DEBUG = ["debug", "--prompt", "When Mary gave to", "--target", " Mary"]


@pytest.fixture
def labelled(fake: Fake) -> Fake:
    """The server, whose latent 9 of layer 1 has a label and a link."""
    fake[1].labels, fake[1].link = {9: "names of people"}, LINK
    return fake


def described(label: str = "names of people", link: str = LINK) -> ModelInfo:
    return model_info(FakeService(labels={9: label}, link=link).GetModelInfo(None, _NoContext()).model_info)  # type: ignore[arg-type]


def annotated(label: str = "names of people", link: str = LINK) -> list[DebugResult]:
    """A result without and one with an ablation."""
    plain = DebugSubRequest.of("p", " Mary", " John")
    ablated = DebugSubRequest.of("p", " Mary", " John", ablate="L1 head 2 @ -1")
    return [with_notes(one, described(label, link)) for one in debug_results(plain, ablated)]


class _NoContext:
    def invocation_metadata(self) -> tuple[()]:
        return ()


def notes_of(result: DebugResult) -> list[tuple[str | None, str | None]]:
    return list(zip(result.nodes.labels, result.nodes.links, strict=True))


NOTHING: list[tuple[str | None, str | None]] = [(None, None)] * len(NODES)
EXPECTED = list(NOTHING)
EXPECTED[LATENT] = ("names of people", "https://example.org/1/9")


async def test_results_have_them_and_the_model_is_asked_for_once(labelled: Fake) -> None:
    server, service = labelled
    with Client(server) as client:
        for _ in range(2):
            result = client.debug("p", " Mary")
            assert notes_of(result) == EXPECTED
    assert service.n_model_infos == 1
    async with AsyncClient(server) as client:
        for _ in range(2):
            assert notes_of(await client.debug("p", " Mary")) == EXPECTED
    assert service.n_model_infos == 2


async def test_labels_are_those_of_the_weights_that_answered(labelled: Fake) -> None:
    """Several servers may be behind a channel, and one may be started anew."""
    server, service = labelled
    service.digest = "ee"
    with Client(server) as client:
        assert notes_of(client.debug("p", " Mary")) == NOTHING
    assert service.n_model_infos == 2  # beside the call, and once more for its digest
    async with AsyncClient(server) as asking:
        assert notes_of(await asking.debug("p", " Mary")) == NOTHING
        service.digest = "00ff"
        assert notes_of(await asking.debug("p", " Mary")) == EXPECTED


async def test_a_server_that_does_not_describe_its_model_answers_without_them(labelled: Fake) -> None:
    server, service = labelled
    service.is_silent = True
    with Client(server) as client:
        assert notes_of(client.debug("p", " Mary")) == NOTHING
    async with AsyncClient(server) as asking:
        assert notes_of(await asking.debug("p", " Mary")) == NOTHING
        service.is_silent = False
        assert notes_of(await asking.debug("p", " Mary")) == EXPECTED


async def test_who_asks_for_the_model_itself_is_told_why_it_failed(labelled: Fake) -> None:
    server, service = labelled
    service.is_silent = True
    with Client(server) as client, pytest.raises(NotImplementedCallError, match="says nothing"):
        client.chat_prompt("Hello")
    async with AsyncClient(server) as asking:
        with pytest.raises(NotImplementedCallError, match="says nothing"):
            await asking.chat_prompt("Hello")


def test_labels_are_made_fit_to_print() -> None:
    (result, _) = annotated(EVIL)
    assert result.nodes.labels[LATENT] == TAMED
    assert annotated(" \n")[0].nodes.labels[LATENT] is None


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert({latent})",
        "data:text/html,{latent}",
        "file:///etc/{latent}",
        "//example.org/{latent}",
        " https://example.org/{latent}",
        "https://example.org/ {latent}",
        'https://example.org/"onclick="{latent}',
        "https://example.org/\u202e{latent}",
        "https://example.org/\x1b{latent}",
    ],
)
def test_only_addresses_of_the_web_are_links(link: str) -> None:
    assert annotated(link=link)[0].nodes.links == (None,) * len(NODES)


def dictionary(site: str, *layers: int) -> AutoencoderInfo:
    labels = {layer: {9: f"{site} {layer}"} for layer in layers}
    return AutoencoderInfo(site, 80, "relu", None, layers, labels=labels)


@pytest.mark.parametrize(
    ("node", "label"),
    [
        ("L0 mlp latent 9 @ 2", "resid_delta_mlp 0"),
        ("L1 mlp latent 9 @ 2", "mlp_post_act 1"),
        ("L1 mlp latent 8 @ 2", None),
        ("L2 mlp latent 9 @ 2", None),
        ("gradient of L0 mlp latent 9 @ 2", "resid_delta_mlp 0"),
        ("L0 transcoder latent 9 @ 2", "mlp_transcoder 0"),
        ("L0 attention latent 9 @ 2", "attn_v_out 0"),
        ("L1 attention latent 9 @ 2", "resid_delta_attn 1"),
        ("L0 post-attn latent 9 @ 2", "resid_post_attn 0"),
        ("L0 post-mlp latent 9 @ 2", "resid_post_mlp 0"),
        ("L0 latent 9 @ 2", None),  # of which of them?
        ("L3 latent 9 @ 2", "mlp_post_act 3"),
        ("L0 neuron 9 @ 2", None),
        ("embedding @ 2", None),
    ],
)
def test_a_label_is_that_of_the_nodes_own_dictionary(node: str, label: str | None) -> None:
    model = described()
    sites = {
        "resid_delta_mlp": (0,), "mlp_post_act": (1, 3), "mlp_transcoder": (0,), "attn_v_out": (0,),
        "resid_delta_attn": (1,), "resid_post_attn": (0,), "resid_post_mlp": (0,), "9999": (0,),
    }  # fmt: skip
    loaded = tuple(dictionary(site, *layers) for site, layers in sites.items())
    kept = {name: getattr(model, name) for name in model.__dataclass_fields__}
    assert ModelInfo(**kept | {"autoencoders": loaded}).label(Node.parse(node)) == label


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("label", ["names of people", EVIL, "日本の人の名前" * 20, "[bold]" * 20])
def test_tables_show_labels_shortened(width: int, label: str) -> None:
    results = annotated(label)
    view = pages.View("direct_effect", 0, 0, width)
    drawings: list[Callable[[], Any]] = [
        lambda: pages.result_page(results[0], view),
        lambda: pages.comparison_page(*results, view),
    ]
    for draw in drawings:
        console = Console(width=width, markup=False, emoji=False, highlight=False)
        with console.capture() as captured:
            console.print(draw())
        lines = captured.get().splitlines()
        assert max(map(cell_len, lines)) <= width
        row = next(number for number, line in enumerate(lines) if line.startswith("L1 mlp latent 9"))
        shown = lines[row + 1].strip()
        whole = results[0].nodes.labels[LATENT] or ""
        assert shown == whole or (
            shown.endswith("…") and whole.startswith(shown[:-1].rstrip()) and len(shown) > 10
        )
        assert not re.search("[\x00-\x09\x0b-\x1f]", captured.get())


def test_the_page_shows_a_label_as_text_and_a_link_that_tells_nothing() -> None:
    text = annotated(EVIL)[0].to_html()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    node = json.loads(found[1])["nodes"][LATENT]
    assert (node["label"], node["link"]) == (TAMED, "https://example.org/1/9")
    assert 'href: address, target: "_blank", rel: "noopener noreferrer"' in text


def test_frames_and_csv_have_labels_where_there_are_some(labelled: Fake, capsys: Output) -> None:
    pandas = pytest.importorskip("pandas")
    frame = annotated()[0].to_frame()
    assert [one for one in frame["label"] if one is not pandas.NA] == ["names of people"]
    assert frame["label"][LATENT] == "names of people"
    assert "label" not in debug_results(DebugSubRequest.of("p", " Mary"))[0].to_frame()
    labelled[1].labels = {9: "=1+1"}
    assert main([*DEBUG, "--csv", "--server", labelled[0]]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split(",") == list(frame.columns)
    assert rows[LATENT].endswith(',"""=1+1"""')  # no formula
    assert rows[0].endswith(",")


def test_the_command_shows_them(labelled: Fake, capsys: Output) -> None:
    assert main([*DEBUG, "--server", labelled[0]]) == 0
    assert "names of people" in capsys.readouterr().out
    assert main([*DEBUG, "--json", "--server", labelled[0]]) == 0
    node = json.loads(capsys.readouterr().out)["sub_requests"][0]["result"]["nodes"][LATENT]
    assert (node["label"], node["link"]) == EXPECTED[LATENT]
    assert main(["info", "--server", labelled[0]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "layers 0, 1, 1 labels, links such as https://example.org/1/0" in out

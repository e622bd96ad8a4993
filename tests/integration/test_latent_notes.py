"""Labels from a file beside a dictionary's weights, on their way to whoever looks at an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tdb_client import AsyncClient, Client, DebugResult
from tdb_client.cli import main

from tests.integration.browser import CHROMIUM, opened
from tests.running_server import TINY_MODEL, start, stop

PROMPT = "the cat sat on the"
EVIL = "</script><img src=x onerror=document.title=1> \x1b[2J" + "long " * 40
N_LATENTS = 96


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose dictionary has a label for every latent of layer 1, and links for all of its layers."""
    folder = tmp_path_factory.mktemp("sae") / "mlp_post_act"
    shutil.copytree(TINY_MODEL / "autoencoders" / "mlp_post_act", folder)
    config = json.loads((folder / "config.json").read_text())
    config["link"] = "https://example.org/{layer}/{latent}"
    (folder / "config.json").write_text(json.dumps(config))
    labels = {"1": {str(latent): f"label {latent} {EVIL}" for latent in range(N_LATENTS)}}
    (folder / "labels.json").write_text(json.dumps(labels))
    server = start(tmp_path_factory.mktemp("server"), "--autoencoder", str(folder))
    yield f"127.0.0.1:{server.port}"
    stop(server)


def look_at(result: DebugResult) -> None:
    """Every latent has what stands in the files, and no other node has anything."""
    nodes = result.nodes
    latents = {node.layer for node in nodes.nodes if node.is_latent}
    assert latents == {0, 1, 2}
    for node, label, link in zip(nodes.nodes, nodes.labels, nodes.links, strict=True):
        is_labelled = node.type == "mlp_autoencoder_latent" and node.layer == 1
        assert (label or "").startswith(f"label {node.index} </script>") == is_labelled
        assert (label is not None) == is_labelled
        assert link == (f"https://example.org/{node.layer}/{node.index}" if node.is_latent else None)


async def test_answers_have_the_labels_of_the_file(address: str) -> None:
    with Client(address) as client:
        look_at(client.debug(PROMPT, " the", mlp="autoencoder_latent"))
        assert not any(client.debug(PROMPT, " the").nodes.labels)
    async with AsyncClient(address) as asking:
        look_at(await asking.debug(PROMPT, " the", mlp="autoencoder_latent"))


def test_the_command_says_which_dictionary_has_some(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--server", address]) == 0
    assert "96 labels, links such as https://example.org/0/0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("size", [(1366, 768), (960, 720), (420, 800)])
def test_the_page_shows_labels_and_links_and_follows_none(
    address: str, tmp_path: Path, size: tuple[int, int]
) -> None:
    file = tmp_path / "report.html"
    with Client(address) as client:
        file.write_text(client.debug(PROMPT, " the", mlp="autoencoder_latent").to_html(), encoding="utf-8")
    with opened(file, *size) as page:
        assert page.complaints == []
        assert page.requests == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        assert page.evaluate("document.title") == "Why ' the'?"
        page.evaluate("document.querySelector('.nodes .label').parentNode.querySelector('button').click()")
        node = page.evaluate("document.querySelector('#card code').textContent")
        layer, latent = node.split()[0][1:], node.split()[3]
        assert layer == "1"
        shown = page.evaluate("document.querySelector('#card .label').textContent")
        assert shown.startswith(f"label {latent} </script><img")
        links = page.evaluate(
            "[...document.querySelectorAll('#card a, .nodes tr:has(.label) a')].map("
            "({href, target, rel}) => [href, target, rel])"
        )
        assert [f"https://example.org/{layer}/{latent}", "_blank", "noopener noreferrer"] in links[:-1]
        assert links[-1] == [f"https://example.org/{layer}/{latent}", "_blank", "noopener noreferrer"]

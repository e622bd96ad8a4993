from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tdb_client import ApiVersionWarning, AsyncClient, Client
from tdb_client.cli import main
from tdb_client.compatibility import API_VERSION, version_problem

from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]
SERVER_SOURCE = Path(__file__).parents[3] / "server/src/tdb_server/service/model_messages.py"


def test_client_and_server_of_one_release_speak_the_same() -> None:
    assert f'API_VERSION = "{API_VERSION}"' in SERVER_SOURCE.read_text()


@pytest.mark.parametrize("fits", ["v1", "v1.7", "v1beta2"])
def test_within_a_version_everything_fits(fits: str) -> None:
    assert version_problem(fits) is None


@pytest.mark.parametrize("other", ["v2", "v10", "", "1", "unknown"])
def test_other_versions_are_told_with_advice(other: str) -> None:
    problem = version_problem(other)
    assert problem is not None
    assert "this client (transformer-debugger-client " in problem
    assert "Install the client of the server's version" in problem


def test_a_channel_is_asked_once(fake: Fake) -> None:
    server, service = fake
    with Client(server) as client:
        assert service.n_model_infos == 0  # nothing before it is used
        for _ in range(3):
            client.debug("p", " Mary")
        assert service.n_model_infos == 1
    with Client(server) as client:
        client.model_info()
        client.debug("p", " Mary")
    assert service.n_model_infos == 2  # what the user asked for is enough


async def test_a_channel_is_asked_once_in_asyncio_too(fake: Fake) -> None:
    server, service = fake
    async with AsyncClient(server) as client:
        for _ in range(3):
            await client.debug("p", " Mary")
        assert service.n_model_infos == 1
    service.api_version = "v2"
    async with AsyncClient(server) as client:
        with pytest.warns(ApiVersionWarning, match="'v2'"):
            await client.debug("p", " Mary")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await client.model_info()


def test_another_version_is_warned_of_once(fake: Fake) -> None:
    server, service = fake
    service.api_version = "v2"
    for ask in (lambda one: one.debug("p", " Mary"), lambda one: one.model_info()):
        with Client(server) as client:
            with pytest.warns(
                ApiVersionWarning, match=f"{server}: the server speaks interface 'v2', this client"
            ):
                ask(client)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ask(client)


def test_a_server_that_does_not_tell_is_used_all_the_same(fake: Fake) -> None:
    fake[1].is_silent = True
    with Client(fake[0]) as client:
        assert client.debug("p", " Mary").loss == 3.0
    assert fake[1].n_model_infos > 0


def test_the_command_warns_in_one_line(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake[1].api_version = "v2"
    assert main(["debug", "--prompt", "p", "--target", " Mary", "--server", fake[0]]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"tdb: warning: {fake[0]}: the server speaks interface 'v2'")
    assert err.count("\n") == 1

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tdb_server.command import run
from tdb_server.domain.caller import CallerLimits
from tdb_server.security_settings import NewToken, is_loopback
from tdb_server.service.access.token import token_digest
from tdb_server.settings import parse_settings

TLS = ("--tls-certificate", "c.pem", "--tls-key", "k.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine(host):
    assert is_loopback(host)
    assert parse_settings(["serve", "--host", host], {}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "localhost.example.org", ""])
def test_other_machines_need_tls_or_a_word(host, capsys):
    assert not is_loopback(host)
    with pytest.raises(SystemExit) as ended:
        parse_settings(["serve", "--host", host], {})
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--tls-certificate" in said
    assert "--allow-plaintext" in said
    assert said.count("\n") == 1
    assert parse_settings(["serve", "--host", host, "--allow-plaintext"], {}).host == host
    assert parse_settings(["serve", "--host", host], {"TDB_SERVER_ALLOW_PLAINTEXT": "1"}).host == host
    assert parse_settings(["serve", "--host", host, *TLS], {}).security.tls_key == Path("k.pem")


@pytest.mark.parametrize(
    "flags", [TLS[:2], TLS[2:], ("--tls-client-ca", "ca.pem"), ("--max-connections", "0")]
)
def test_flags_that_do_not_go_together(flags):
    with pytest.raises(SystemExit) as ended:
        parse_settings(["serve", *flags], {})
    assert ended.value.code == 2


def test_a_new_token_is_shown_once(capsys):
    assert parse_settings(["token", "alice"], {}) == NewToken("alice", CallerLimits())
    run(["token", "alice", "--calls-per-minute", "60", "--max-activation-bytes", "1GiB"])
    said = capsys.readouterr()
    token = said.err.split()[-1]
    (entry,) = tomllib.loads(said.out)["token"]
    assert entry == {
        "name": "alice",
        "sha256": token_digest(token).hex(),
        "calls_per_minute": 60,
        "max_activation_bytes": 1024**3,
    }
    assert token not in said.out


def test_a_token_with_a_share_of_its_own(capsys):
    run(["token", "alice", "--max-priority", "sweep", "--weight", "2", "--tenant", "physics"])
    (entry,) = tomllib.loads(capsys.readouterr().out)["token"]
    del entry["sha256"]
    assert entry == {"name": "alice", "max_priority": "sweep", "weight": 2.0, "tenant": "physics"}


def test_proxies_are_addresses_or_networks():
    told = parse_settings(["serve", "--trusted-proxies", "10.0.0.0/8, 192.0.2.1,fd00::/8"], {})
    assert told.security.trusted_proxies == ("10.0.0.0/8", "192.0.2.1/32", "fd00::/8")
    with pytest.raises(SystemExit):
        parse_settings(["serve", "--trusted-proxies", "proxy.example.org"], {})


@pytest.mark.parametrize("name", ["", "a b", 'a"', "-a", "é", "x" * 65, "a\nb"])
def test_names_of_tokens(name):
    with pytest.raises(SystemExit) as ended:
        parse_settings(["token", "--", name], {})
    assert ended.value.code == 2


@pytest.mark.parametrize("hosts", ["tdb.example", "*.tdb.example,10.1.2.3", "::1,*", "a_b.local"])
def test_hosts(hosts):
    assert parse_settings(["serve", "--allowed-hosts", hosts], {}).security.allowed_hosts == tuple(
        hosts.split(",")
    )


@pytest.mark.parametrize("hosts", ["http://tdb.example", "tdb.example:80", "*example", "a*b", "a b", ","])
def test_hosts_that_make_no_sense(hosts, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_settings(["serve", "--allowed-hosts", hosts], {})
    assert ended.value.code == 2
    assert "--allowed-hosts: must" in capsys.readouterr().err

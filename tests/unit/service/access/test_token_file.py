from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tdb_server.domain.caller import Caller, CallerLimits
from tdb_server.domain.limits import Limits
from tdb_server.domain.priority import Priority
from tdb_server.errors import ConfigurationBroken
from tdb_server.service.access.file_watch import MAX_FILE_BYTES
from tdb_server.service.access.token import new_token, token_digest, token_entry
from tdb_server.service.access.token_file import TokenFile, read_tokens

ALICE, BOB = new_token(), new_token()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(token_entry("alice", ALICE, CallerLimits(calls_per_minute=5)))
    return path


def test_tokens_are_long_and_differ():
    assert len({new_token() for _ in range(100)}) == 100
    assert ALICE.startswith("tdb_")
    assert len(ALICE) > 40


def test_an_entry_reads_back_and_hides_the_token(path):
    assert ALICE not in path.read_text()
    (token,) = read_tokens(path)
    assert token.caller == Caller("alice", CallerLimits(calls_per_minute=5), has_token=True)
    assert token.digest == token_digest(ALICE)


def test_all_keys_read_back(path):
    limits = CallerLimits(3, 4, 2048, Priority.SWEEP)
    path.write_text(token_entry("alice", ALICE, limits, weight=2.5, tenant="physics"))
    (token,) = read_tokens(path)
    assert token.caller == Caller("alice", limits, weight=2.5, tenant="physics", has_token=True)


def test_callers_of_one_tenant_share_results_and_no_others_do():
    alice, bob = Caller("alice", tenant="physics"), Caller("bob", tenant="physics")
    others = [Caller("alice"), Caller("bob"), Caller("physics"), Caller("carol", tenant="alice")]
    assert alice.cache_owner == bob.cache_owner
    assert len({one.cache_owner for one in (alice, *others)}) == 5


def test_whose_token_it_is(path):
    path.write_text(
        token_entry("alice", ALICE, CallerLimits()) + token_entry("bob", BOB, CallerLimits(3, 4, 2048))
    )
    tokens = TokenFile(path)
    assert tokens.caller_of(ALICE) == Caller("alice", has_token=True)
    assert tokens.caller_of(BOB) == Caller("bob", CallerLimits(3, 4, 2048), has_token=True)
    for wrong in ("", ALICE[:-1], ALICE + "x", token_digest(ALICE).hex(), "tøken", "\udcff"):
        assert tokens.caller_of(wrong) is None


def test_changes_are_seen_at_the_next_look(path):
    tokens = TokenFile(path)
    path.write_text(token_entry("bob", BOB, CallerLimits()))
    assert tokens.caller_of(BOB) is None
    tokens.look()
    assert tokens.caller_of(BOB) == Caller("bob", has_token=True)
    assert tokens.caller_of(ALICE) is None


def test_a_file_of_the_same_size_and_time_put_in_its_place_is_seen(path):
    tokens = TokenFile(path)
    before = path.stat()
    beside = path.with_name("new")
    beside.write_text(token_entry("alicf", BOB, CallerLimits(calls_per_minute=5)))
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
    beside.rename(path)
    tokens.look()
    assert tokens.caller_of(BOB) is not None


@pytest.mark.parametrize("content", ["", "  \n", "[[token]", "[[token]]\nname = 'x'\n", "#" * 5_000_000])
def test_a_broken_file_changes_nothing_and_is_logged(path, caplog, content):
    tokens = TokenFile(path)
    path.write_text(content)
    tokens.look()
    with caplog.at_level(logging.ERROR):
        assert tokens.caller_of(ALICE) is not None
    assert "stay in force" in caplog.text
    path.write_text(token_entry("bob", BOB, CallerLimits()))
    tokens.look()
    assert tokens.caller_of(BOB) is not None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_changes_nothing_and_is_not_waited_for(path, caplog, make):
    tokens = TokenFile(path)
    path.unlink()
    make(path)
    tokens.look()
    assert tokens.caller_of(ALICE) is not None
    assert "stay in force" in caplog.text
    with pytest.raises(ConfigurationBroken, match=r"regular file|directory"):
        TokenFile(path)


def test_a_file_that_is_gone_lets_nobody_in(path, caplog):
    content = path.read_text()
    tokens = TokenFile(path)
    path.unlink()
    tokens.look()
    assert tokens.caller_of(ALICE) is not None  # somebody may just be putting another in its place
    tokens.look()
    assert tokens.caller_of(ALICE) is None
    tokens.look()
    assert caplog.text.count("is gone") == 1
    path.write_text(content)
    tokens.look()
    assert tokens.caller_of(ALICE) is not None


def test_a_file_that_is_put_back_at_once_was_never_gone(path):
    tokens = TokenFile(path)
    for index in range(5):
        path.unlink()
        tokens.look()
        path.write_text(token_entry(f"alice{index}", ALICE, CallerLimits()))
        tokens.look()
        assert tokens.caller_of(ALICE) == Caller(f"alice{index}", has_token=True)


def test_nobody_is_let_in_when_the_file_says_so(path):
    tokens = TokenFile(path)
    path.write_text("token = []\n")
    tokens.look()
    assert tokens.caller_of(ALICE) is None


DIGEST = "5f" * 32  # not by chance: names of tests must be the same in every process


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tokens = 1", "must consist of"),
        ("[token]\nname = 'a'", "must consist of"),
        ("token = [1]", "must be a table"),
        (f"[[token]]\nsha256 = '{DIGEST}'", "must have a name"),
        ("[[token]]\nname = 'a'\nsha256 = 'abc'", "64 hexadecimal digits"),
        (f"[[token]]\nname = 'a b'\nsha256 = '{DIGEST}'", "letters, digits"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\nmax_calls = 1", "unknown keys: max_calls"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\ncalls_per_minute = 0", "calls_per_minute"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\ncalls_per_minute = true", "calls_per_minute"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\nmax_priority = 'high'", "interactive, sweep"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\nmax_priority = 1", "interactive, sweep"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\nweight = 0", "weight"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\nweight = inf", "weight"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\nweight = true", "weight"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\ntenant = 'a b'", "letters, digits"),
        (f"[[token]]\nname = 'a'\nsha256 = '{DIGEST}'\n" * 2, "must differ"),
    ],
)
def test_what_makes_no_sense(path, content, words):
    path.write_text(content)
    with pytest.raises(ConfigurationBroken, match=words):
        read_tokens(path)


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path):
    os.mkfifo(fifo := tmp_path / "fifo")
    with pytest.raises(ConfigurationBroken, match="fifo: a FIFO, not a regular file"):
        read_tokens(fifo)
    with pytest.raises(ConfigurationBroken, match=r"gone: cannot be read \(No such file"):
        read_tokens(tmp_path / "gone")
    (large := tmp_path / "large").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigurationBroken, match="large: 4194305 bytes long"):
        read_tokens(large)


def test_bytes_that_are_no_text(path):
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationBroken, match="utf-8"):
        TokenFile(path)


def test_the_stricter_limit_counts():
    own = CallerLimits(max_concurrent_calls=3, max_activation_bytes=10**18)
    limits = Limits(max_concurrent_calls=7, max_activation_bytes=10**9)
    within = own.within(limits)
    assert (within.max_concurrent_calls, within.max_activation_bytes) == (3, 10**9)
    assert CallerLimits().within(limits) == limits

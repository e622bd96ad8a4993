from __future__ import annotations

from tdb_server.domain.requests import (
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ScoredTokensSpec,
    TokenScoringType,
)
from tdb_server.domain.results import Finished, ObjectiveValues, StageSeconds
from tdb_server.workers.result_cache import EVENT_OVERHEAD_BYTES, CacheKey, ResultCache, cache_key

OVERHEAD = 2 * EVENT_OVERHEAD_BYTES


def of(digest: bytes, owner: str = "anyone") -> CacheKey:
    return CacheKey(owner, digest)


def keep(cache: ResultCache, key: CacheKey, n_bytes: int) -> None:
    recording = cache.recording(key)
    if recording is not None:
        recording.add(ObjectiveValues(0, float(n_bytes), None), n_bytes)
        recording.add(Finished(StageSeconds(forward=1.0)), 0)
        cache.keep(recording)
        recording.give_up()  # as is done with every recording in the end


def sub_request(token: int = 1, name: str = "tokens") -> InferenceSubRequest:
    spec = InferenceSpec((1, token), LossConfig(LossName.PROBS, (3,)))
    return InferenceSubRequest(spec, {name: ScoredTokensSpec("top", TokenScoringType.UPVOTED_OUTPUT_TOKENS)})


def test_equal_calls_share_a_key_and_no_others_do():
    key = cache_key("anyone", "digest", [sub_request()])
    assert key == cache_key("anyone", "digest", (sub_request(),))
    others = [
        cache_key("anyone", "other weights", [sub_request()]),
        cache_key("anyone", "digest", [sub_request(token=2)]),
        cache_key("anyone", "digest", [sub_request(name="other")]),
        cache_key("anyone", "digest", [sub_request(), sub_request()]),
        cache_key("someone else", "digest", [sub_request()]),
    ]
    assert len({key, *others}) == 6


def test_what_is_kept_comes_back_without_its_timings():
    cache = ResultCache(10_000)
    keep(cache, of(b"a"), 100)
    assert cache.get(of(b"a")) == (ObjectiveValues(0, 100.0, None), Finished())
    assert cache.get(of(b"b")) is None
    assert cache.get(None) is None


def test_the_least_recently_used_go_first():
    cache = ResultCache(4 * (OVERHEAD + 1000))
    for key in (b"a", b"b", b"c", b"d"):
        keep(cache, of(key), 1000)
    cache.get(of(b"a"))
    keep(cache, of(b"e"), 1000)
    assert [key for key in (b"a", b"b", b"c", b"d", b"e") if cache.get(of(key))] == [b"a", b"c", b"d", b"e"]
    assert cache.n_bytes == 4 * (OVERHEAD + 1000)


def test_too_large_an_entry_is_not_kept():
    cache = ResultCache(8000)
    keep(cache, of(b"small"), 100)
    keep(cache, of(b"large"), 3000)
    assert cache.get(of(b"large")) is None
    assert cache.get(of(b"small"))
    assert cache.n_bytes == OVERHEAD + 100


def test_a_cache_without_room_records_nothing():
    assert ResultCache(0).recording(of(b"a")) is None
    assert ResultCache(1000).recording(None) is None


def test_running_calls_take_a_share_and_give_it_back():
    cache = ResultCache(40_000)
    recordings = [cache.recording(of(bytes([i]))) for i in range(20)]
    for recording in recordings:
        recording.add(ObjectiveValues(0, 1.0, None), 1000)
    assert 8000 < cache.n_bytes <= 10_000
    for recording in recordings:
        recording.give_up()
    assert cache.n_bytes == 0


def test_a_call_that_runs_again_is_recorded_anew():
    cache = ResultCache(40_000)
    recording = cache.recording(of(b"a"))
    recording.add(ObjectiveValues(0, 1.0, None), 9000)
    recording.start_again()
    recording.add(ObjectiveValues(0, 2.0, None), 9)
    recording.add(Finished(), 0)
    cache.keep(recording)
    assert cache.get(of(b"a")) == (ObjectiveValues(0, 2.0, None), Finished())
    assert cache.n_bytes == OVERHEAD + 9


def test_the_same_call_twice_at_once_is_kept_once():
    cache = ResultCache(40_000)
    recordings = [cache.recording(of(b"a")), cache.recording(of(b"a"))]
    for recording in recordings:
        recording.add(Finished(), 100)
    for recording in recordings:
        cache.keep(recording)
        recording.give_up()
    assert cache.n_bytes == EVENT_OVERHEAD_BYTES + 100


def test_nobody_sees_what_others_have_asked():
    cache = ResultCache(10_000)
    keep(cache, of(b"a", "alice"), 100)
    assert cache.get(of(b"a", "bob")) is None
    assert cache.get(of(b"a", "alice")) is not None


def test_who_has_most_loses_entries_and_those_with_little_keep_theirs():
    cache = ResultCache(5 * (OVERHEAD + 1000))
    keep(cache, of(b"a", "alice"), 1000)
    for digest in range(20):
        keep(cache, of(bytes([digest]), "bob"), 1000)
    assert cache.get(of(b"a", "alice")) is not None
    assert [digest for digest in range(20) if cache.get(of(bytes([digest]), "bob"))] == [16, 17, 18, 19]
    for digest in range(20):
        keep(cache, of(bytes([digest]), "alice"), 1000)
    kept = [digest for digest in range(20) if cache.get(of(bytes([digest]), "bob"))]
    assert len(kept) >= 2
    assert cache.n_bytes <= 5 * (OVERHEAD + 1000)

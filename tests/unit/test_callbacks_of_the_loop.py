"""Everything that is handed to the event loop is known here, with what becomes of a fault in it.

An exception in a callback goes to the loop, and not to whoever waits for what the callback was to do. So
whoever adds one says here where a test makes it fail, or why it cannot.
"""

from __future__ import annotations

import ast
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server" / "src" / "tdb_server"
TESTS = Path(__file__).parents[1]
HANDING_OVER = {
    *("call_soon", "call_soon_threadsafe", "call_later", "call_at", "add_done_callback"),
    *("add_reader", "add_writer", "add_signal_handler", "create_task", "ensure_future"),
}
AWAITED = "whoever made it waits for it, and gets its exception"
CANNOT = "does nothing that can fail"
WAIT = "unit/workers/test_faults_on_the_loop.py::test_a_fault_when_the_wait_for_more_calls_ends"
GONE = "unit/workers/test_faults_on_the_loop.py::test_a_fault_when_a_worker_is_gone"
HANGS = "unit/workers/test_faults_on_the_loop.py::test_a_worker_that_hangs_is_given_up_although"
HEALTH = "unit/service/test_health.py::test_health_that_cannot_be_set_is_set_again"
LAG = "unit/service/telemetry/test_loop_lag.py::test_a_pause_is_seen_also_after_a_fault"
LOOKS = "unit/workers/test_pool.py::test_a_fault_while_one_worker_is_looked_after"
PLACE = "unit/workers/test_pool.py::test_a_fault_in_the_place_of_a_worker_costs_no_worker"
REPLICAS = "ray/test_replacement.py::test_calls_of_a_killed_replica_run_on_another"
SPOOL = "unit/workers/test_spool.py::test_an_event_that_cannot_be_kept_breaks_the_answer_off"
SYSTEMD = "unit/service/test_systemd.py::test_a_server_without_descriptors_lives"
THREADS = "unit/service/test_fair_threads.py::test_a_fault_after_the_work_loses_no_thread"
TOLD = "unit/workers/test_pool.py::test_a_fault_in_what_is_told_about_a_worker"

KNOWN = {
    ("gateway/http_calls.py", "answer"): AWAITED,
    ("gateway/http_calls.py", "_disconnected(request)"): AWAITED,
    ("gateway/workbench/in_process.py", "answered(request)"): AWAITED,
    ("service/app.py", "self._pool.first_ready()"): AWAITED,
    ("service/app.py", "stopped.wait()"): AWAITED,
    ("service/app.py", "self._server.stop(LAST_BYTES_SECONDS)"): AWAITED,
    ("service/app.py", "self._set_health(_SERVING if n_ready else _NOT_SERVING)"): HEALTH,
    ("service/app.py", "self._after_health_change"): HEALTH,
    ("service/app.py", "lambda: self._on_readiness(self._pool.n_ready)"): HEALTH,
    ("service/fair_threads.py", "end"): THREADS,
    ("service/http/listener.py", "self._server.serve(sockets=[listener])"): AWAITED,
    ("service/http/listener.py", "self.transport.abort"): CANNOT,
    ("service/http/listener.py", "abort_unless_written"): CANNOT,
    ("service/signals.py", "stopped.set"): CANNOT,
    ("service/signals.py", "stopped.set if stops_on_hangup else reload"): CANNOT,
    ("service/systemd.py", "self._give_signs(self._seconds_between_signs)"): SYSTEMD,
    ("service/telemetry/reporting.py", "watch_loop(self._metrics.loop_lag.record)"): LAG,
    ("workers/callbacks.py", "keep_trying"): GONE,
    ("workers/pool.py", "lambda done: done.cancelled() or done.exception()"): CANNOT,
    ("workers/pool.py", "self._watch()"): LOOKS,
    ("workers/pool.py", "guarded(self.start, self._not_started)"): PLACE,
    ("workers/process.py", "lambda _: self._on_the_way.release()"): CANNOT,
    ("workers/process.py", "action"): TOLD,
    ("workers/ray_outbox.py", "self._has_some.set"): CANNOT,
    ("workers/ray_outbox.py", "self._end"): CANNOT,
    ("workers/ray_pool.py", "self._keep()"): REPLICAS,
    ("workers/ray_replica.py", "lambda _: self._batches.pop(key, None)"): CANNOT,
    ("workers/ray_worker.py", "self._lost"): REPLICAS,
    ("workers/ray_worker.py", "self._read(message, self._response)"): REPLICAS,
    ("workers/ray_worker.py", "self._tell_replicas(self._batch.batch_id, call_id)"): REPLICAS,
    ("workers/ray_worker.py", "self._telling.discard"): CANNOT,
    ("workers/scheduler.py", "guarded(self._wake, self._not_woken)"): WAIT,
    ("workers/scheduler.py", "self._end_watch"): HANGS,
    ("workers/spool.py", "self._unwritten.discard"): CANNOT,
    ("workers/ticket.py", "self._after_storing"): SPOOL,
}


def test_every_callback_is_known() -> None:
    assert handed_over() == set(KNOWN)


def test_the_tests_named_exist() -> None:
    for place in set(KNOWN.values()) - {AWAITED, CANNOT}:
        path, _, name = place.partition("::")
        assert f"def {name}" in (TESTS / path).read_text(), place


def handed_over() -> set[tuple[str, str]]:
    """Files of the server, with the source of what they hand to the loop."""
    found = set()
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if (name := node.func.attr) in HANDING_OVER:
                what = node.args[1 if name in ("call_later", "call_at", "add_signal_handler") else 0]
                found.add((path.relative_to(SERVER).as_posix(), ast.unparse(what)))
    return found

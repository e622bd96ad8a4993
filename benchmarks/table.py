"""The tables, as aligned Markdown: readable in a terminal, and fit for docs/benchmarks.md as they are."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.latency import STAGES, Row
from benchmarks.limits import Limit
from benchmarks.precision import PrecisionError
from benchmarks.throughput import Throughput
from benchmarks.transport import Transport

Cells = Sequence[str]
NOTHING = "–"


def table(header: Cells, rows: Sequence[Cells], n_left: int = 1) -> str:
    """Aligned columns: the first `n_left` to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Cells) -> str:
        padded = [
            cell.ljust(width) if column < n_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if column < n_left else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def latency_table(rows: Sequence[Row]) -> str:
    """All rows of one model: milliseconds, ratios, MB."""
    with_precision = len({row.precision for row in rows}) > 1
    header = [
        "case", *(["in"] if with_precision else []), "T", "floor", "p50", "p95", "ratio", "Debug", "ratio",
        "first", *(_SHORT[stage] for stage in STAGES), "rest", "memory", "wire",
    ]  # fmt: skip
    cells = [
        [
            row.title, *([row.precision] if with_precision else []), str(row.n_tokens),
            _ms(row.floor_p50), _ms(row.stream_p50), _ms(row.stream_p95), _number(row.stream_ratio, 2),
            _ms(row.debug_p50), _number(row.debug_ratio, 2), _ms(row.first_result_p50),
            *(_ms(row.stages.get(stage)) for stage in STAGES), _ms(row.transport),
            _mb(row.memory_bytes), _mb(row.wire_bytes, 2),
        ]
        for row in rows
    ]  # fmt: skip
    eager = [
        f"{row.n_tokens}: {row.floor_eager_p50 / row.floor_p50:.2f}"
        for row in rows
        if row.floor_eager_p50 and row.floor_p50 and row.precision == rows[0].precision
    ]
    failures = [f"- {row.title}, {row.n_tokens} tokens: {row.failure}" for row in rows if row.failure]
    lists = [f"{row.title} {row.n_tokens}: {_ms(row.lists_p50)}" for row in rows if row.lists_p50 is not None]
    notes = [f"Floor with eager attention, over the floor: {', '.join(eager)}."] if eager else []
    notes += [f"Reading all token lists afterwards, milliseconds: {', '.join(lists)}."] if lists else []
    return "\n".join([table(header, cells), "", *notes, *failures])


_SHORT = {
    "queue": "queue",
    "forward": "fwd",
    "backward": "bwd",
    "derive": "derive",
    "score": "score",
    "serialize": "serial",
}


def throughput_table(throughputs: Sequence[Throughput]) -> str:
    """Calls per second by callers."""
    cells = [
        [
            one.model, str(one.n_tokens), str(one.n_callers), f"{one.calls_per_second:.2f}",
            _ms(one.p50), _ms(one.p95), str(one.n_calls),
        ]
        for one in throughputs
    ]  # fmt: skip
    return table(["model", "T", "callers", "calls/s", "p50", "p95", "calls"], cells)


def transport_table(transports: Sequence[Transport]) -> str:
    """What the service itself costs."""
    cells = [
        [
            one.model, f"{one.tokenize_p50 * 1e3:.2f}", f"{one.tokenize_p95 * 1e3:.2f}",
            f"{one.tensor_bytes / 2**20:.2f}", f"{one.tensor_p50 * 1e3:.1f}",
            f"{one.bytes_per_second / 1e6:.0f}",
        ]
        for one in transports
    ]  # fmt: skip
    return table(["model", "Tokenize p50", "p95", "tensor, MiB", "streamed in", "MB/s"], cells)


def precision_table(errors: Sequence[PrecisionError]) -> str:
    """How far each precision is from float32."""
    cells = [
        [one.model, one.precision, f"{one.loss:.2g}", f"{one.median_sum:.2g}", f"{one.worst_sum:.2g}"]
        for one in errors
    ]
    return table(["model", "in", "loss off by", "sums, median", "worst"], cells, n_left=2)


def limits_table(limits: Sequence[Limit]) -> str:
    """Promises, measurements and verdicts."""
    words = {True: "pass", False: "MISS", None: "not measured"}
    cells = [[one.model, one.what, one.bound, _number(one.measured, 2), words[one.is_kept]] for one in limits]
    return table(["model", "limit", "bound", "measured", "verdict"], cells, n_left=2)


def _ms(seconds: float | None) -> str:
    """Milliseconds with three digits, or fewer where there is no need."""
    if seconds is None:
        return NOTHING
    milliseconds = seconds * 1e3
    return f"{milliseconds:.0f}" if abs(milliseconds) >= 99.5 else f"{milliseconds:.1f}"


def _mb(n_bytes: int | None, digits: int = 0) -> str:
    return _number(None if n_bytes is None else n_bytes / 1e6, digits)


def _number(number: float | None, digits: int) -> str:
    return NOTHING if number is None else f"{number:.{digits}f}"

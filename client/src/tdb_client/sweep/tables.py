"""Tables of a sweep as files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from tdb_client.errors import TdbError
from tdb_client.sweep.journal import Record, write_whole
from tdb_client.sweep.means import Columns

OBJECTIVES = "objectives.jsonl"


class ParquetError(TdbError):
    """No Parquet file can be written, because pyarrow is not installed."""


def check_parquet() -> None:
    """Says at once, and not after hours, that Parquet cannot be written.

    Raises:
        ParquetError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        needed = "Parquet needs pyarrow: pip install 'transformer-debugger-client[parquet]'"
        raise ParquetError(needed) from None


def write_csv(columns: Columns, path: Path) -> None:
    """Writes a table as CSV: numbers with nine digits, empty where there is none.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(one) for one in row] for row in zip(*columns.values(), strict=True))
    write_whole(path, [text.getvalue().encode()])


def write_parquet(columns: Columns, path: Path) -> None:
    """Writes a table as Parquet.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), content)
    write_whole(path, [content.getvalue()])


def write_objectives(records: Iterable[Record], nodes: list[str], path: Path) -> None:
    """Writes the objective of each line, in the order of the input, as JSON lines.

    Args:
        records: of the lines.
        nodes: those that were ablated each by itself; empty where none was.
        path: the file.

    Raises:
        OSError: the file cannot be written.
    """

    def lines() -> Iterator[bytes]:
        for one in records:
            line = {name: one[name] for name in ("line", "id", "n_tokens")}
            line["objective"] = _finite(one["objective"])
            if nodes:
                line["ablated"] = dict(zip(nodes, map(_finite, one["ablated"]), strict=True))
            yield json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    write_whole(path, lines())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return value

"""All that a run has measured: printed as tables, written as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import table
from benchmarks.latency import Row
from benchmarks.limits import Limit
from benchmarks.precision import PrecisionError
from benchmarks.sharing import Sharing
from benchmarks.throughput import Throughput
from benchmarks.transport import Transport


@dataclass
class Report:
    """What was measured, on which machine, and whether the promises were kept."""

    machine: dict[str, object]
    rows: list[Row] = field(default_factory=list)
    throughputs: list[Throughput] = field(default_factory=list)
    transports: list[Transport] = field(default_factory=list)
    sharings: list[Sharing] = field(default_factory=list)
    precision_errors: list[PrecisionError] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes all of it as JSON: times in seconds, sizes in bytes."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def __str__(self) -> str:
        """The tables, the promises last: times in milliseconds, memory and wire in MB."""
        parts = [self._machine()]
        for model in dict.fromkeys(row.model for row in self.rows):
            parts.append(f"**{model}**")
            parts.append(table.latency_table([row for row in self.rows if row.model == model]))
        if self.throughputs:
            parts.append(table.throughput_table(self.throughputs))
        if self.transports:
            parts.append(table.transport_table(self.transports))
        if self.precision_errors:
            parts.append(table.precision_table(self.precision_errors))
        if self.limits:
            parts.append(table.limits_table(self.limits))
        return "\n\n".join(parts)

    def _machine(self) -> str:
        facts = self.machine
        parts = [
            f"{facts['cpu']}, {facts['cores']} cores",
            f"{facts['device']}, {facts['threads']} threads",
            f"commit {facts['commit']}, {facts['date']}",
            f"{facts.get('seconds')} s",
        ]
        others = facts.get("share_of_cores_used_by_others")
        if isinstance(others, float):
            parts.append(f"other programs used {others:.0%} of the cores meanwhile")
        return "; ".join(parts) + "."

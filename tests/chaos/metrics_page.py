"""What the server tells Prometheus."""

from __future__ import annotations

import json
import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.running_server import RunningServer


def reading(server: RunningServer, name: str, **labels: str) -> float:
    """The sum of all samples of this name that have these labels; 0 where there are none yet."""
    return sum(
        sample.value
        for sample in _samples(server)
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def upper_bound(server: RunningServer, histogram: str) -> float:
    """The smallest bound of a histogram's buckets that no sample is above."""
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in _samples(server)
        if sample.name == f"{histogram}_bucket"
    ]
    n_samples = max(number for _, number in buckets)
    return min(bound for bound, number in buckets if number == n_samples)


def metrics_url(server: RunningServer) -> str:
    """Where that is."""
    return f"http://127.0.0.1:{json.loads(server.ready_file.read_text())['metrics_port']}/metrics"


def _samples(server: RunningServer) -> list[Sample]:
    with urllib.request.urlopen(metrics_url(server), timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    return [sample for family in families for sample in family.samples]

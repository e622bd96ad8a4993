"""What the server tells Prometheus."""

from __future__ import annotations

import json
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.running_server import RunningServer


def reading(server: RunningServer, name: str, **labels: str) -> float:
    """The sum of all samples of this name that have these labels; 0 where there are none yet."""
    port = json.loads(server.ready_file.read_text())["metrics_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )

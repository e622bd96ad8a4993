"""What the fronts compute with: flags for each kind of pool."""

from __future__ import annotations

POOLS: dict[str, tuple[str, ...]] = {
    "local": ("--workers", "2", "--threads", "1"),
}
"""Two workers behind each front."""

ONE_WORKER: dict[str, tuple[str, ...]] = {
    "local": ("--workers", "1", "--threads", "1"),
}
"""A single one, where a test asks little of it."""

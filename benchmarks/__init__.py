"""What is claimed about speed, measured: `python -m benchmarks.run`; see docs/benchmarks.md."""

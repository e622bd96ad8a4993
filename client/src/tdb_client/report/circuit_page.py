"""A circuit as one self-contained HTML page without a script: its nodes, and what is kept by size."""

from __future__ import annotations

import html
import math

from tdb_client.circuit import Circuit
from tdb_client.number_text import number
from tdb_client.token_text import loss_words, printable, quoted

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
.dim { opacity: 0.7; }
table { border-collapse: collapse; }
td, th { padding: 0.1rem 1rem 0.1rem 0; text-align: left; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: currentColor; }
svg .axis { stroke: currentColor; opacity: 0.35; }
svg .wanted { stroke: currentColor; stroke-dasharray: 4 4; opacity: 0.6; }
svg .curve { fill: none; stroke: #1e88e5; stroke-width: 2; }
svg circle { fill: #1e88e5; }
svg circle.best { fill: #d55e00; }
"""
_WIDTH, _HEIGHT, _MARGIN = 760, 300, 40
_TOP = 1.2
"""Faithfulness at the upper edge; what is above is drawn there."""


def circuit_page(circuit: Circuit) -> str:
    """The page. Every text of the prompt and its tokens is escaped, and nothing is fetched."""
    words = [
        [quoted(one) if isinstance(one, str) else f"token {one}" for one in tokens]
        for tokens in (circuit.target, circuit.distractor)
    ]
    values, estimates = circuit.best.values, dict(circuit.ranking)
    title = f"A circuit for {loss_words('logit_diff', *words)}"
    baselines = [printable(one) for one in circuit.baseline] or ["none: others are set to 0"]
    rows = "".join(
        f"<tr><td><code>{node}</code><td>{number(estimates.get(node, 0.0), sign=True)}"
        for node in circuit.nodes
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<body>
<h1>{html.escape(title)}</h1>
<p>prompt: <q>{html.escape(printable(circuit.prompt))}</q>
{"".join(f"<br>baseline: <q>{html.escape(one)}</q>" for one in baselines)}
<p><strong>Faithfulness {circuit.faithfulness:.3f}</strong>
with {len(circuit)} of {circuit.n_components} heads and MLPs ({circuit.share:.1%}): they alone give
{number(values.objective)}, where the prompt has {number(values.of_prompt)} and the baseline
{number(values.of_baseline)}.
<h2>Faithfulness against size</h2>
{_curve(circuit)}
<h2>Nodes</h2>
<table><tr><th>node<th>estimated effect{rows}</table>
<p class="dim">{html.escape(circuit.model_name)}, weights <code>{html.escape(circuit.model_digest)}</code>;
{circuit.n_measured} circuits measured
"""


def _curve(circuit: Circuit) -> str:
    """The best circuit measured of each size; sizes on a logarithmic axis."""
    largest = math.log(max(circuit.n_components, 2))

    def x(size: int) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * math.log(max(size, 1)) / largest

    def y(faithfulness: float) -> float:
        return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * min(max(faithfulness, 0.0), _TOP) / _TOP

    points = [(x(len(one)), y(one.faithfulness), one) for one in circuit.path]
    dots = "".join(
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{5 if one is circuit.best else 3}"'
        f"{' class=best' if one is circuit.best else ''}>"
        f"<title>{len(one)}: {one.faithfulness:.3f}</title></circle>"
        for across, down, one in points
    )
    lines = "".join(
        f'<line class="{kind}" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}"'
        f' y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="4" y="{y(value) + 4:.1f}">{value:g}</text>'
        for kind, value in (("axis", 0.0), ("wanted", circuit.wanted), ("axis", 1.0))
    )
    sizes = sorted({1, len(circuit), circuit.n_components})
    ticks = "".join(f'<text x="{x(one):.1f}" y="{_HEIGHT - 12}">{one}</text>' for one in sizes)
    path = " ".join(f"{across:.1f},{down:.1f}" for across, down, _ in points)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="faithfulness against size">'
        f'{lines}{ticks}<polyline class="curve" points="{path}"/>{dots}</svg>'
    )

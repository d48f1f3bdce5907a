"""Charts of the report as HTML and SVG text, without scripts or external files."""

from collections.abc import Sequence
from html import escape

import numpy as np

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #66727f; --line: #e3e8ee;
  --pq: #2f6fb2; --sq: #9bbfe0; --rq: #f0a35e; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 60px; background: #fff; color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 38px 0 6px; }
p { margin: 4px 0 10px; } .soft { color: var(--soft); font-size: 13.5px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 6px; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px 9px; min-width: 96px; }
.tile b { display: block; font-size: 23px; font-weight: 600; } .tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; } .scroll { overflow-x: auto; }
.classes { width: 100%; } .classes td, .classes th { padding: 4px 7px; text-align: right; white-space: nowrap; }
.classes th { font-weight: 500; font-size: 13px; color: var(--soft); border-bottom: 1px solid var(--line); }
.classes td { border-bottom: 1px solid #f1f4f7; font-variant-numeric: tabular-nums; }
.classes .name, .classes .kind { text-align: left; } .classes .kind { color: var(--soft); font-size: 13px; }
.classes .bars { width: 34%; min-width: 220px; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px;
  border: 1px solid #0002; }
.bar { height: 5px; margin: 2px 0; border-radius: 2px; } .bar.main { height: 9px; }
.track { background: #f4f6f8; border-radius: 2px; }
.pq { background: var(--pq); } .sq { background: var(--sq); } .rq { background: var(--rq); }
.confusion { font-size: 12px; } .confusion td { min-width: 34px; height: 25px; text-align: center; padding: 0 3px; }
.confusion th { font-weight: 500; text-align: right; padding: 0 7px; white-space: nowrap; }
.confusion .top { height: 110px; vertical-align: bottom; padding: 0; }
.confusion .top div { writing-mode: vertical-rl; transform: rotate(180deg); margin: auto; padding: 4px 0; }
.confusion.many td { min-width: 13px; width: 13px; height: 13px; padding: 0; font-size: 0; }
.confusion.many th { font-size: 10.5px; }
.confusion td.void { border-left: 2px solid #fff; } .pairs { margin: 10px 0; padding-left: 20px; }
.example { display: grid; grid-template-columns: 1fr 1fr; gap: 4px 10px; margin: 12px 0 20px; }
.example img { width: 100%; display: block; border-radius: 4px; }
.example h3 { grid-column: 1 / 3; margin: 0; font-size: 15px; }
.legend span { margin-right: 16px; } .legend i { display: inline-block; width: 14px; height: 8px; margin-right: 5px; }
@media print { .example { break-inside: avoid; } }
"""

CURVE_COLORS = {"pq": "#2f6fb2", "sq": "#7fb0db", "rq": "#e08a3c"}


def bars(values: dict[str, float]) -> str:
    """Return bars below each other as HTML, the first one thicker.

    Args:
        values: The length of each bar as a fraction in 0..1, by its CSS class.
    """
    return "".join(
        f'<div class="track"><div class="bar {key}{" main" if first else ""}" style="width:{100 * value:.1f}%">'
        "</div></div>"
        for first, (key, value) in ((k == 0, item) for k, item in enumerate(values.items()))
    )


def heat_color(share: float, right: bool) -> tuple[str, str]:
    """Return the background and text color of a cell of the confusion table.

    Args:
        share: The fraction of the true class's pixels, in 0..1.
        right: Whether the cell is on the diagonal; it is blue then, otherwise red.
    """
    # The square root makes small confusions visible.
    strength = min(max(share, 0.0), 1.0) ** 0.5
    red, green, blue = (47, 111, 178) if right else (205, 69, 52)
    mixed = [round(255 + (c - 255) * strength) for c in (red, green, blue)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})", "#fff" if strength > 0.75 else "#1f2933"


def confusion_table(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Return a confusion matrix as an HTML table, each row in percent of the true class.

    Args:
        confusion: (C, C + 1) numbers of pixels, true by predicted class; the last column has no predicted class.
        names: The names of the C classes.
    """
    totals = confusion.sum(axis=1)
    many = " many" if len(names) > 24 else ""
    head = "".join(f'<th class="top"><div>{escape(name)}</div></th>' for name in [*names, "no segment"])
    rows = []
    for k, name in enumerate(names):
        if not totals[k]:
            continue
        cells = []
        for j, count in enumerate(confusion[k]):
            share = count / totals[k]
            background, color = heat_color(share, j == k)
            predicted = "no segment" if j == len(names) else names[j]
            text = f"{100 * share:.0f}" if share >= 0.005 else ""
            cells.append(
                f'<td{" class=void" if j == len(names) else ""} style="background:{background};color:{color}" '
                f'title="{escape(name)} predicted as {escape(predicted)}: {100 * share:.2f} %">{text}</td>'
            )
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return f'<table class="confusion{many}"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def line_chart(x: np.ndarray, lines: dict[str, np.ndarray], labels: dict[str, str], x_label: str) -> str:
    """Return curves as SVG, with a legend as HTML below it.

    Args:
        x: (n,) positions in 0..1.
        lines: (n,) values in 0..1 of each curve, which are shown in percent, by a key of ``CURVE_COLORS``.
        labels: The label of each curve.
        x_label: The label of the horizontal axis.
    """
    width, height, left, bottom, top = 620, 300, 46, 42, 12
    w, h = width - left - 16, height - top - bottom

    def to_pixels(px: float, py: float) -> str:
        return f"{left + w * px:.1f},{top + h * (1 - py):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" style="max-width:100%;font-size:12px">']
    for tick in range(0, 101, 20):
        y = top + h * (1 - tick / 100)
        tx = left + w * tick / 100
        parts.append(f'<line x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e8ee"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#66727f">{tick}</text>')
        parts.append(f'<text x="{tx:.1f}" y="{top + h + 18}" text-anchor="middle" fill="#66727f">{tick / 100:g}</text>')
    for key, values in lines.items():
        points = " ".join(to_pixels(px, py) for px, py in zip(x.tolist(), values.tolist(), strict=True))
        stroke = 2.4 if key == "pq" else 1.6
        color = CURVE_COLORS[key]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{stroke}"/>')
    best = int(lines["pq"].argmax())
    cx, cy = to_pixels(float(x[best]), float(lines["pq"][best])).split(",")
    parts.append(f'<circle cx="{cx}" cy="{cy}" r="4" fill="{CURVE_COLORS["pq"]}"/>')
    parts.append(
        f'<text x="{left + w / 2}" y="{height - 6}" text-anchor="middle" fill="#66727f">{x_label}</text></svg>'
    )
    legend = "".join(
        f'<span><i style="background:{CURVE_COLORS[key]}"></i>{escape(labels[key])}</span>' for key in lines
    )
    return f'{"".join(parts)}<div class="legend soft">{legend}</div>'

"""Charts of the report as HTML and SVG text, without scripts or external files."""

from collections.abc import Sequence
from html import escape

import numpy as np

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

"""The differences of two evaluations: of their numbers, overall, per class and per image, and of what was evaluated."""

import csv
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from ..errors import UserError
from ..io import read_json, read_text
from .html_page import heading, make_page, make_table
from .tables import AP_COLUMNS, COLUMNS, OPTIONAL_COLUMNS, PARTS

# The metrics of a class that are compared, with their heads.
_METRICS = {key: COLUMNS[key] for key in ("pq", "sq", "rq")} | OPTIONAL_COLUMNS
# The numbers of images that gained most, and that lost most, on the page and on the screen.
_LISTED, _PRINTED = 20, 5


class Change(NamedTuple):
    """A value in 0..1 in both evaluations; None where it is not known.

    Attributes:
        label: What the value is of.
        a, b: The values.
    """

    label: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """b - a; None if either is not known."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """The differences of two evaluations.

    Attributes:
        names: What both are called.
        overall: The means: PQ, SQ, RQ, mIoU and AP, as far as one of both has them.
        classes: The changes of each class by its name and the key of ``results_per_class``, keys that neither has left
            out.
        images: The changes of PQ of the images of both, the largest loss first.
        num_images: The numbers of images of both.
        facts: What was evaluated differently: a name and both values.
    """

    names: tuple[str, str]
    overall: list[Change]
    classes: dict[str, dict[str, Change]]
    images: list[Change]
    num_images: tuple[int, int]
    facts: list[tuple[str, Any, Any]]

    @property
    def gained(self) -> list[Change]:
        """The images whose PQ has risen, the largest gain first."""
        return [change for change in reversed(self.images) if change.difference > 0]

    @property
    def lost(self) -> list[Change]:
        """The images whose PQ has fallen, the largest loss first."""
        return [change for change in self.images if change.difference < 0]


@dataclass(frozen=True)
class _Evaluation:
    metrics: dict[str, Any]
    images: dict[str, tuple[str, float | None]]  # name and PQ by id

    @classmethod
    def read(cls, folder: Path) -> "_Evaluation":
        metrics = read_json(folder / "metrics.json", "metrics of an evaluation")
        rows = csv.DictReader(io.StringIO(read_text(folder / "per_image.csv", "table of images")))
        try:
            images = {row["image_id"]: (row["name"], float(row["pq"]) if row["pq"] else None) for row in rows}
            found = cls(metrics, images)
            for read in (found.overall, found.classes, found.class_set, found.facts, found.config):
                read()  # fails for files that something else has written
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{folder} does not hold a report of an evaluation by this version; evaluate again"
            ) from None
        return found

    def overall(self) -> dict[str, float | None]:
        metrics = self.metrics
        values = {
            key.upper() + ("" if part == "All" else f" {part.lower()}"): metrics[part][key]
            for part in PARTS
            for key in ("pq", "sq", "rq")
        }
        values |= {key: value for key, value in metrics.items() if isinstance(value, float)}  # mIoU and the like
        for what, kinds in metrics["average_precision"].items():
            # "box AP50", but "box AP small".
            values |= {f"{what} {'' if h.startswith('AP') else 'AP '}{h}": kinds[k] for k, h in AP_COLUMNS.items()}
        return values

    def classes(self) -> dict[str, dict[str, float | None]]:
        """Return the metrics of each class; quality is not known of classes without any segment."""
        found = {}
        for row in self.metrics["per_class"].values():
            occurs = row["tp"] + row["fp"] + row["fn"] > 0
            found[row["class"]] = {
                key: row[key] if occurs or key in OPTIONAL_COLUMNS else None for key in _METRICS if key in row
            }
        return found

    def class_set(self) -> dict[str, str]:
        return {i: f"{row['kind']} {row['class']} with id {i}" for i, row in self.metrics["per_class"].items()}

    def facts(self) -> dict[str, Any]:
        """Return what was evaluated, except the config."""
        known = {name: values for name, values in self.metrics["facts"].items() if name != "config"}
        flat = {f"{name}: {key}": value for name, values in known.items() for key, value in values.items()}
        return {"rules": self.metrics["rules"], "images": self.metrics["images"], **flat}

    def config(self) -> dict[str, Any]:
        return self.metrics["facts"].get("config", {})


def compare_evaluations(a: str | Path, b: str | Path) -> Comparison:
    """Compare two evaluations.

    Args:
        a, b: The folders with their metrics.json and per_image.csv.

    Raises:
        UserError: A file is missing or malformed, or the evaluations have different classes.
    """
    one, two = _Evaluation.read(Path(a)), _Evaluation.read(Path(b))
    different = [
        text for x, y in ((one, two), (two, one)) for i, text in x.class_set().items() if y.class_set().get(i) != text
    ]
    if different:
        raise UserError(
            f"{a} and {b} have different classes, for instance {different[0]} in one of them only; compare evaluations "
            "on one data set"
        )
    classes = one.classes(), two.classes()
    differences = _differences(one.facts(), two.facts())
    if one.config() and two.config():  # files have none
        differences += _differences(one.config(), two.config())
    images = [
        Change(name, quality, two.images[i][1])
        for i, (name, quality) in one.images.items()
        if i in two.images and quality is not None and two.images[i][1] is not None
    ]
    return Comparison(
        (str(a), str(b)),
        _pair(one.overall(), two.overall()),
        {name: {change.label: change for change in _pair(classes[0][name], classes[1][name])} for name in classes[0]},
        sorted(images, key=lambda change: (change.difference, change.label)),
        (len(one.images), len(two.images)),
        differences,
    )


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the names and both values of what is not the same; None where there is none."""
    return [(key, a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)]


def _pair(a: dict[str, float | None], b: dict[str, float | None]) -> list[Change]:
    """Return the values of both by label; those that neither knows are left out."""
    changes = [Change(label, a.get(label), b.get(label)) for label in a | b]
    return [change for change in changes if (change.a, change.b) != (None, None)]


def _measured(comparison: Comparison) -> dict[str, str]:
    """Return the metrics that any class has, with their heads."""
    return {key: head for key, head in _METRICS.items() if any(key in c for c in comparison.classes.values())}


def format_comparison(comparison: Comparison) -> str:
    """Return the comparison as tables for the screen, in percent."""

    def table(rows: list[list[Any]], heads: list[str]) -> str:
        marks = ["+.2f" if head.startswith("B - A") or head.startswith("±") else ".2f" for head in heads]
        return tabulate(rows, heads, floatfmt=marks, missingval="-")

    def row(change: Change) -> list[Any]:
        values = (change.a, change.b, change.difference)
        return [change.label, *(None if value is None else 100 * value for value in values)]

    metrics = _measured(comparison)
    classes = [
        [name, *(row(changes[k])[3] if k in changes else None for k in metrics)]
        for name, changes in comparison.classes.items()
    ]
    heads = ["A", "B", "B - A"]
    parts = [
        f"A {comparison.names[0]}\nB {comparison.names[1]}",
        table([row(change) for change in comparison.overall], ["", *heads]),
        table(classes, ["B - A", *(f"± {head}" for head in metrics.values())]),
    ]
    for what, changes in (("gained", comparison.gained), ("lost", comparison.lost)):
        if changes:
            rows = [row(change) for change in changes[:_PRINTED]]
            parts.append(table(rows, [f"PQ of {len(changes)} images that {what}", *heads]))
    parts.append(tabulate(comparison.facts, ["differs", "A", "B"], disable_numparse=True, missingval="-"))
    return "\n\n".join(parts)


def make_comparison_page(comparison: Comparison) -> str:
    """Return the comparison as a self-contained HTML page."""
    a, b = (escape(name) for name in comparison.names)
    metrics = _measured(comparison)
    class_rows = []
    for name, changes in sorted(comparison.classes.items(), key=lambda item: _order(item[1].get("pq"))):
        quality = changes.get("pq", Change("pq", None, None))
        cells = [_cell(quality.a), _cell(quality.b)]
        cells += [_difference(changes[key] if key in changes else None) for key in metrics]
        class_rows.append(f'<tr><td class="name">{escape(name)}</td>{"".join(cells)}</tr>')
    class_heads = [heading("class", "name"), heading("PQ of A"), heading("PQ of B")]
    class_heads += [heading(f"± {label}", sorted_by="ascending" if k == "pq" else "") for k, label in metrics.items()]
    common = len(comparison.images)
    fact_rows = [
        "<tr>"
        + "".join(f'<td class="name">{"–" if text is None else escape(str(text))}</td>' for text in row)
        + "</tr>"
        for row in comparison.facts
    ]
    sections = [
        "<h1>Comparison of two evaluations</h1>",
        f'<table class="facts"><tr><td>A</td><td>{a}</td></tr><tr><td>B</td><td>{b}</td></tr></table>',
        '<p class="soft">Percent; differences are B minus A, so that B is better where they are positive.</p>',
        "<h2>Overall</h2>" + _change_table("", comparison.overall),
        "<h2>Classes</h2>" + make_table(class_heads, class_rows, high=False),
        f'<h2>Images</h2><p class="soft">PQ of the image alone; {common} images are in both evaluations and have '
        f"segments, {len(comparison.gained)} gained and {len(comparison.lost)} lost. A has {comparison.num_images[0]} "
        f"images, B {comparison.num_images[1]}.</p>",
        f"<h3>Gained most</h3>{_change_table('image', comparison.gained[:_LISTED])}",
        f"<h3>Lost most</h3>{_change_table('image', comparison.lost[:_LISTED])}",
        "<h2>What was evaluated differently</h2>"
        + make_table([heading("", "name"), heading("A", "name"), heading("B", "name")], fact_rows),
    ]
    return make_page(f"{comparison.names[0]} and {comparison.names[1]}", sections)


def _order(change: Change | None) -> tuple[bool, float]:
    """Return the sort key of a change: losses first, unknown ones last."""
    unknown = change is None or change.difference is None
    return unknown, 0.0 if unknown else change.difference


def _change_table(head: str, changes: list[Change]) -> str:
    rows = [
        f'<tr><td class="name">{escape(c.label)}</td>{_cell(c.a)}{_cell(c.b)}{_difference(c)}</tr>' for c in changes
    ]
    heads = [heading(head, "name") if head else '<th class="name"></th>', heading("A"), heading("B"), heading("B − A")]
    return make_table(heads, rows, high=False) if rows else '<p class="soft">none</p>'


def _cell(value: float | None) -> str:
    return f"<td>{'–' if value is None else f'{100 * value:.1f}'}</td>"


def _difference(change: Change | None) -> str:
    if change is None or change.difference is None:
        return _cell(None)
    percent = round(100 * change.difference, 1)
    if not percent:
        return "<td>0.0</td>"
    return f'<td class="{"better" if percent > 0 else "worse"}">{f"{percent:+.1f}".replace("-", "−")}</td>'

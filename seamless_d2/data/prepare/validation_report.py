"""What a validation of a data set found."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from ...errors import UserError
from ...io import atomic_write
from ...structures.coco_json import CocoCategory

#: The number of problems of one file that ``Report.list_files`` spells out.
_MAX_TEXTS = 3


@dataclass
class Report:
    """The result of a validation.

    Attributes:
        problems: A file and a sentence for each problem.
        warnings: A file and a sentence for each thing that is allowed, but is often a mistake.
        segments: The number of segments per category id.
        crowds: The number of crowd segments per category id.
        pixels: The number of pixels per category id; None stands for void.
        images: The number of images whose PNG could be compared with the json.
        fixed: The number of areas and boxes that were rewritten.
    """

    problems: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    segments: Counter = field(default_factory=Counter)
    crowds: Counter = field(default_factory=Counter)
    pixels: Counter = field(default_factory=Counter)
    images: int = 0
    fixed: int = 0

    def add(self, other: "Report") -> None:
        """Add the report on other images."""
        self.problems += other.problems
        self.warnings += other.warnings
        for counter in ("segments", "crowds", "pixels"):
            getattr(self, counter).update(getattr(other, counter))
        self.images += other.images
        self.fixed += other.fixed

    def format_table(self, categories: list[CocoCategory]) -> str:
        """Return a table with the numbers of segments and the fraction of pixels of each category, as text."""
        total = max(sum(self.pixels.values()), 1)
        rows = [
            [
                c.id,
                c.name,
                "thing" if c.isthing else "stuff",
                self.segments[c.id],
                self.crowds[c.id],
                f"{100 * self.pixels[c.id] / total:.2f}",
            ]
            for c in categories
        ]
        rows.append(["", "void", "", "", "", f"{100 * self.pixels[None] / total:.2f}"])
        return tabulate(rows, ["id", "class", "kind", "segments", "crowds", "% of pixels"], tablefmt="simple")

    def write(self, path: str | Path) -> None:
        """Write a line of json for each problem and each warning."""
        with atomic_write(path, "w") as file:
            for level, found in (("error", self.problems), ("warning", self.warnings)):
                for name, text in found:
                    file.write(json.dumps({"level": level, "file": name, "problem": text}) + "\n")


def list_files(found: list[tuple[str, str]]) -> list[str]:
    """Return a line for each file with problems or warnings: the first of them, and how many more there are."""
    by_file = defaultdict(list)
    for file, text in found:
        by_file[file].append(text)
    return [
        f"{file}: {'; '.join(texts[:_MAX_TEXTS])}"
        + (f" (and {len(texts) - _MAX_TEXTS} more)" if len(texts) > _MAX_TEXTS else "")
        for file, texts in by_file.items()
    ]


def check_report_file(path: Path) -> None:
    """Raise ``UserError`` if ``path`` exists and is not what ``Report.write`` has written."""
    if not path.exists():
        return
    try:
        with open(path, encoding="utf-8") as file:
            line = file.readline(10_000)
        ours = not line or {"file", "problem"} <= json.loads(line).keys()
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"{path} exists and is no report of a validation; choose another file for --report")

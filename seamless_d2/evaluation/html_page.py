"""A self-contained HTML page: its style, its script and tables that are sorted by a click on a heading."""

from collections.abc import Iterable, Sequence
from html import escape

# The browser is told that nothing may be loaded, whatever a name in the page contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
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
.facts { margin: 14px 0 6px; font-size: 13.5px; } .facts td { padding: 1px 14px 1px 0; vertical-align: top; }
.facts td:first-child { color: var(--soft); white-space: nowrap; } .facts td { overflow-wrap: anywhere; }
details pre { max-height: 420px; overflow: auto; background: #f7f9fb; padding: 10px 14px; font-size: 12.5px; }
summary { cursor: pointer; font-size: 13.5px; color: var(--soft); }
table { border-collapse: collapse; } .scroll { overflow: auto; } .scroll.high { max-height: 480px; }
.table { width: 100%; } .table td, .table th { padding: 4px 7px; text-align: right; white-space: nowrap; }
.table th { font-weight: 500; font-size: 13px; color: var(--soft); border-bottom: 1px solid var(--line); }
.table thead th { position: sticky; top: 0; background: #fff; }
.table td { border-bottom: 1px solid #f1f4f7; font-variant-numeric: tabular-nums; }
.table .name, .table .kind { text-align: left; } .table .kind { color: var(--soft); font-size: 13px; }
.table td.name { white-space: normal; overflow-wrap: anywhere; min-width: 120px; }
.table .bars { width: 34%; min-width: 220px; } .better { color: #1b6e3c; } .worse { color: #b3261e; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--pq); }
th button::after { content: "\\2195"; opacity: 0.35; margin-left: 3px; }
[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
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
.example { display: grid; grid-auto-columns: 1fr; gap: 4px 10px; margin: 12px 0 20px; }
.example h3 { grid-column: 1 / -1; margin: 0; font-size: 15px; }
.example button { all: unset; cursor: zoom-in; grid-row: 2; }
.example button:focus-visible { outline: 2px solid var(--pq); }
.example img { width: 100%; display: block; border-radius: 4px; }
dialog { border: 0; padding: 0; background: transparent; max-width: none; max-height: none; cursor: zoom-out; }
dialog::backdrop { background: #000c; }
dialog img { display: block; width: 96vw; height: 94vh; object-fit: contain; image-rendering: auto; }
.legend span { margin-right: 16px; } .legend i { display: inline-block; width: 14px; height: 8px; margin-right: 5px; }
@media print { .example { break-inside: avoid; } .scroll.high { max-height: none; } }
"""

# Columns of names sort as text; what is no number comes last, whatever the direction.
_SCRIPT = """
const number = cell => parseFloat(cell.textContent.replace("\\u2212", "-"));
function sortBy(head) {
  const table = head.closest("table"), column = head.cellIndex, body = table.tBodies[0];
  const isText = head.classList.contains("name");
  const before = head.getAttribute("aria-sort");
  const up = before ? before === "descending" : isText;
  const rows = [...body.rows].map((row, place) => ({row, place, cell: row.cells[column]}));
  rows.sort((a, b) => {
    if (isText) {
      const order = a.cell.textContent.localeCompare(b.cell.textContent, "en", {numeric: true});
      return (up ? order : -order) || a.place - b.place;
    }
    const [x, y] = [number(a.cell), number(b.cell)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.place - b.place;
    return (up ? x - y : y - x) || a.place - b.place;
  });
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows.map(entry => entry.row));
}
document.addEventListener("click", event => {
  const head = event.target.closest("th button"), image = event.target.closest(".example button");
  const dialog = document.getElementById("zoom");
  if (head) sortBy(head.parentNode);
  else if (image) { dialog.replaceChildren(image.firstElementChild.cloneNode()); dialog.showModal(); }
  else if (dialog.open) dialog.close();
});
"""


def make_page(title: str, sections: Iterable[str]) -> str:
    """Return a page that loads nothing, with the given parts of its body as HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(sections)
        + f'\n<dialog id="zoom"></dialog><script>{_SCRIPT}</script>\n</body></html>\n'
    )


def heading(text: str, css_class: str = "", sorted_by: str = "") -> str:
    """Return the heading of a column that is sorted by a click.

    Args:
        text: The text.
        css_class: "name" for a column of texts.
        sorted_by: "ascending" or "descending" if the rows are already sorted by it.
    """
    kind = f' class="{css_class}"' if css_class else ""
    order = f' aria-sort="{sorted_by}"' if sorted_by else ""
    return f'<th{kind}{order} scope="col"><button type="button">{escape(text)}</button></th>'


def make_table(heads: Sequence[str], rows: Iterable[str], high: bool = True) -> str:
    """Return a table in a box with scroll bars.

    Args:
        heads: The headings as HTML, see ``heading``.
        rows: The rows as HTML.
        high: Whether the box has a largest height, beyond which the rows are scrolled.
    """
    box = "scroll high" if high else "scroll"
    return (
        f'<div class="{box}"><table class="table"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )

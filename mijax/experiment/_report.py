"""The report of a run: one HTML page that needs nothing else."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from mijax.experiment._observer import Cell, cell_text
from mijax.experiment._result import Result
from mijax.experiment._run import Picture

# Vector pictures above this size (a scatter of many points) go in as PNG.
_LARGEST_SVG = 2_000_000

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #667;
  --rule: #d8dadf; --pass: #11703a; --fail: #b3261e; --missing: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --paper: #16181c;
  --soft: #9aa0aa; --rule: #363a42; --pass: #5fd08a; --fail: #ff8a80;
  --missing: #f0b95a; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; }
.soft, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; }
.PASS { color: var(--pass); font-weight: 600; }
.FAIL { color: var(--fail); font-weight: 600; }
.missing { color: var(--missing); font-weight: 600; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
iframe { width: 100%; height: 40rem; border: 1px solid var(--rule); }
pre { overflow-x: auto; white-space: pre-wrap; }
"""


def report_page(
    result: Result, record: Mapping[str, object], *, folder: Path | None = None
) -> str:
    """Writes the report of a run as one self-contained page.

    Args:
        result: what the run gave.
        record: what it used, as `record.json` keeps it.
        folder: where the pictures lie now; `result.folder` without one.

    Returns:
        HTML with every picture inside it and no link to anything outside.
    """
    files = folder or result.folder
    parts = [
        f"<h1>{escape(result.name)}</h1>",
        f'<p class="soft">{escape(result.description)}</p>',
        _claims(result),
        _numbers(result),
        *(_table(t.title, t.columns, t.rows) for t in result.tables),
        *(_figure(picture, files) for picture in result.pictures),
        *(_page(page, files) for page in result.pages),
        _about(str(record.get("about", ""))),
        "<h2>Record</h2>",
        _tree(record, skip=("about",)),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(result.name)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _claims(result: Result) -> str:
    if not result.verdicts:
        return ""
    rows = "".join(
        f"<tr><td>{escape(v.name)}</td><td>{escape(v.published)}</td>"
        f'<td>{escape(v.ours)}</td><td class="{v.verdict}">{v.verdict}</td>'
        f"<td>{escape(v.source)}</td></tr>"
        for v in result.verdicts
    )
    head = "<tr><th></th><th>published</th><th>ours</th><th>verdict</th><th>source</th>"
    return (
        f'<h2>Published and ours</h2><div class="wide"><table>{head}</tr>{rows}'
        "</table></div>"
    )


def _numbers(result: Result) -> str:
    if not result.numbers:
        return ""
    rows = [(n.name, n.text, n.count, n.note) for n in result.numbers]
    return _table("Numbers", ("number", "value", "samples", "note"), rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<h2>{escape(title)}</h2><div class="wide"><table><tr>{head}</tr>{body}'
        "</table></div>"
    )


def _cell(cell: Cell) -> str:
    numeric = isinstance(cell, int | float) and not isinstance(cell, bool)
    kind = ' class="number"' if numeric else ""
    return f"<td{kind}>{escape(cell_text(cell))}</td>"


def _figure(picture: Picture, folder: Path) -> str:
    svg = [f for f in picture.files if f.endswith(".svg")]
    png = [f for f in picture.files if f.endswith(".png")]
    small = [f for f in svg if (folder / f).stat().st_size <= _LARGEST_SVG]
    file = (small or png or svg)[0]
    kind = "image/svg+xml" if file.endswith(".svg") else "image/png"
    data = base64.b64encode((folder / file).read_bytes()).decode()
    # As an image, an SVG keeps its identifiers to itself.
    return (
        f"<h2>{escape(picture.name)}</h2><figure>"
        f'<img alt="{escape(picture.caption or picture.name)}" '
        f'src="data:{kind};base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _page(page: Picture, folder: Path) -> str:
    text = (folder / page.files[0]).read_text(encoding="utf-8")
    return (
        f"<h2>{escape(page.name)}</h2>"
        f'<iframe title="{escape(page.name)}" sandbox="allow-scripts" '
        f'srcdoc="{escape(text)}"></iframe>'
        f'<p class="soft">{escape(page.caption)} Also in {escape(page.files[0])}, '
        "beside this report.</p>"
    )


def _about(text: str) -> str:
    return f"<h2>About</h2><pre>{escape(text)}</pre>" if text else ""


def _tree(value: object, skip: Sequence[str] = ()) -> str:
    if isinstance(value, Mapping):
        rows = "".join(
            f"<tr><th>{escape(str(key))}</th><td>{_tree(item)}</td></tr>"
            for key, item in value.items()
            if key not in skip
        )
        return f"<table>{rows}</table>" if rows else "none"
    if isinstance(value, list | tuple):
        return "<br>".join(_tree(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape("none" if value is None else str(value))

"""What the READMEs say about measurements: the `headlines` of each result file, and each script's first sentence."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from generators.markdown import table

__all__ = ["replaced", "with_headlines", "with_scripts"]


def with_headlines(readme: str, results: Path) -> str:
    """The README with the section `measured` made anew from `results/<machine>/*.json`."""
    rows = []
    for path in sorted(results.glob("*/*.json")):
        record = json.loads(path.read_text("utf-8"))
        headlines = record.get("headlines", []) if isinstance(record, dict) else []
        link = f"[{path.parent.name}/{path.name}](benchmarks/results/{path.parent.name}/{path.name})"
        rows += [(line["what"], f"{line['value']} {line['unit']}".strip(), link) for line in headlines]
    text = table(("what", "measured", "file"), rows) if rows else "No result file has been recorded yet.\n"
    return replaced(readme, "measured", text)


def with_scripts(readme: str, benchmarks: Path) -> str:
    """The benchmarks' README with the section `scripts` made anew from the scripts' docstrings."""
    rows = []
    for path in sorted(benchmarks.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if not path.stem.startswith("_"):
            rows.append((f"[{path.name}]({path.name})", doc.split("\n\n")[0]))
    return replaced(readme, "scripts", table(("script", "what it measures"), rows))


def replaced(page: str, name: str, text: str) -> str:
    """The page with the section `name`, between its two comments, replaced by `text`."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"the page has no section {begin.strip()} ... {end.strip()}")
    return f"{before}{begin}{text}{end}{after}"

"""Write what the docs take from the code: `python docs/generate.py [--check]`.

docs/reference/            one page a module, from its docstrings
docs/ops-table.md          every op, kernel and rule, from the registry
docs/guide-checkpoints.md  its sample of `inspect`
README.md                  its figures, from benchmarks/results
benchmarks/README.md       its list of scripts, from their docstrings

With --check nothing is written; the command names each file that is not current and returns 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # this checkout, whatever is installed

from generators import checkpoint_sample, measured, ops_table, reference  # noqa: E402


def pages() -> dict[Path, str]:
    """The content of every generated file."""
    readme, benchmarks = ROOT / "README.md", ROOT / "benchmarks"
    made = {ROOT / "docs" / "reference" / name: text for name, text in reference.pages().items()}
    made[ROOT / "docs" / "ops-table.md"] = ops_table.page()
    guide = ROOT / "docs" / "guide-checkpoints.md"
    made[guide] = checkpoint_sample.with_inspection(guide.read_text("utf-8"))
    made[readme] = measured.with_headlines(readme.read_text("utf-8"), benchmarks / "results")
    listing = benchmarks / "README.md"
    made[listing] = measured.with_scripts(listing.read_text("utf-8"), benchmarks)
    return made


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is not current")
    check = parser.parse_args().check

    made = pages()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    orphans = sorted(set((ROOT / "docs" / "reference").glob("*.md")) - made.keys())
    for path in sorted(stale) + orphans:
        print(f"{path.relative_to(ROOT)}: {'has no module' if path in orphans else 'is not current'}")
        if check:
            continue
        if path in orphans:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], "utf-8")
    if check and (stale or orphans):
        print("run: python docs/generate.py")
        return 1
    print(f"{len(made)} generated files are current")
    return 0


if __name__ == "__main__":
    sys.exit(main())

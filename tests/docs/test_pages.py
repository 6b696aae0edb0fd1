"""Generated pages are current, links lead somewhere, and pages name nothing that a reader does not have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")],
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_name_no_absolute_path_and_no_issue_number(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.findall(r"(?<![\w.~$:/])/(?:work|home|root|tmp|usr|opt)/[\w./-]*", text)
    assert not re.findall(r"(?i)(?<!\w)#\d+\b|\bissues? \d+", prose(text))


def test_every_decision_is_listed_and_says_context_choice_and_price() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert listed == sorted(page.name for page in folder.glob("[0-9]*.md"))
    for name in listed:
        headings = re.findall(r"^## (.+)$", (folder / name).read_text("utf-8"), re.MULTILINE)
        assert headings == ["Context", "Choice", "Price"], name


def test_the_readme_gives_one_command_that_passes_the_tests() -> None:
    marked = re.findall(r"<!-- test-command -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(marked) == 1
    assert re.search(r"pytest( -n auto)?$", marked[0].strip())

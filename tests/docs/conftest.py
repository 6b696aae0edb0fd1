"""Code blocks of the docs, as fixtures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import pytest
from attrs import frozen

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@frozen
class Block:
    """A fenced block: its language, what stands behind it (`torch gpu`, `file=name`), its text and first line."""

    page: Path
    line: int
    language: str
    needs: frozenset[str]
    file: str
    text: str

    def compiled(self) -> CodeType:
        """The code, placed so that a traceback names the page and its line."""
        return compile("\n" * self.line + self.text, str(self.page), "exec")


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, which is named from the project's root."""
    path = ROOT / page
    text = path.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        words = match[2].split()
        files = [word.removeprefix("file=") for word in words if word.startswith("file=")]
        needs = frozenset(word for word in words if "=" not in word)
        line = text.count("\n", 0, match.start(3))
        found.append(Block(path, line, match[1], needs, files[0] if files else "", match[3]))
    return found


@pytest.fixture
def blocks() -> Callable[[str], list[Block]]:
    return read_blocks


@pytest.fixture
def root() -> Path:
    return ROOT

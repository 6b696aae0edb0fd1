"""What the commands print: consoles, tables, JSON, progress, and a guarantee in words.

On a terminal tables are fitted to it. Piped, nothing is coloured, cut or wrapped, so that a token stays one word.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import attrs
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from baracuda_py.vocab.sku import PrecisionGuarantee

__all__ = [
    "Fact",
    "bytes_text",
    "error_console",
    "guarantee_words",
    "output_console",
    "print_facts",
    "print_json",
    "print_line",
    "print_table",
    "progress",
    "time_text",
    "visible",
    "working",
]

_UNLIMITED = 100_000  # columns of a console that is no terminal
Fact = tuple[str, str | Text]


def _console(stream: Any) -> Console:
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=_UNLIMITED, force_terminal=False, color_system=None)


# Names in files may hold anything: escape sequences would act on the terminal, and half a surrogate pair cannot be
# written at all. Each stands for one column, so that spans of a style stay where they are.
_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if code != 0x0A}  # pictures of control characters
    | {0x7F: 0x2421}
    | dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0x2028, 0x2029), 0xFFFD)
    | dict.fromkeys((*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF), 0xFFFD)
)


def visible(text: str) -> str:
    """`text` with a visible stand-in for each control character but the line feed."""
    return text.translate(_VISIBLE)


def output_console() -> Console:
    """Standard output as it is now; tests replace it."""
    return _console(sys.stdout)


def error_console() -> Console:
    """Standard error: messages and progress."""
    return _console(sys.stderr)


def print_line(text: str | Text = "", style: str = "", *, indent: int = 0, mark: str | Text = "") -> None:
    """One line; on a narrow terminal it goes on below itself.

    Args:
        text: words, or a token, which is broken behind a dot where it must be.
        style: of the text.
        indent: columns before every line.
        mark: stands before the first line, within the indent.
    """
    console = output_console()
    head = Text(" " * (indent - len(mark))) + mark
    body = text.copy() if isinstance(text, Text) else Text(text, style)
    body.plain = visible(body.plain).replace("\n", "\u240a")
    for line in body.divide(_breaks(body.plain, max(console.width - indent, 1))):
        line.rstrip()
        console.print(head + line, soft_wrap=True)
        head = Text(" " * indent)


def _breaks(text: str, width: int) -> list[int]:
    """Offsets at which `text` is broken into lines of at most `width` columns: at a space, else behind a dot."""
    offsets = []
    start = 0
    while len(text) - start > width:
        space = text.rfind(" ", start + 1, start + width + 1)
        dot = text.rfind(".", start + 1, start + width)
        start = space + 1 if space >= 0 else dot + 1 if dot >= 0 else start + width
        offsets.append(start)
    return offsets


def print_facts(facts: Sequence[Fact], indent: int = 2) -> None:
    """Aligned `label  value` lines."""
    width = max(len(label) for label, _ in facts)
    for label, value in facts:
        print_line(value, indent=indent + width + 2, mark=Text(f"{label.ljust(width)}  ", "dim"))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Sequence[str] = (), wrapped: str = ""
) -> None:
    """A table without frames.

    Args:
        columns: headings.
        rows: cells.
        right: columns that are aligned to the right.
        wrapped: the one column that may be broken over lines when the terminal is narrow.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        justify: Any = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=column != wrapped, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console = output_console()
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def print_json(value: Any) -> None:
    """`value` as JSON; enums by name, NaN and infinities as null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if attrs.has(type(value)):
        return _plain(attrs.asdict(value, recurse=False))
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner while the block runs, on a terminal."""
    console = error_console()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while the block runs, on a terminal; gives the function that moves it on."""
    console = error_console()
    if not console.is_terminal:
        yield lambda _amount: None
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


def bytes_text(nbytes: int) -> str:
    """`"0 bytes"`, `"8,192 bytes"`, `"4.0 MiB"`, `"36.9 GiB"`."""
    if nbytes < 1 << 16:
        return f"{nbytes:,} bytes"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if nbytes >= size:
            return f"{nbytes / size:,.1f} {unit}"
    return f"{nbytes / 2**10:,.1f} KiB"


def time_text(microseconds: float) -> str:
    """In us, ms or s, with three or four digits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.2f} {unit}"
    return f"{microseconds:.1f} us"


def guarantee_words(guarantee: PrecisionGuarantee) -> str:
    """What a complete guarantee promises, in a sentence."""
    assert guarantee.math_precision is not None
    assert guarantee.accumulator is not None
    assert guarantee.partial_sums is not None
    if not guarantee.deterministic:
        bits = "bits may differ between runs"
    elif guarantee.bit_stable_on_same_hardware:
        bits = "same bits in every run and process on such a device"
    else:
        bits = "same bits in every run of one process"
    parts = [
        f"multiplies in {guarantee.math_precision.name.lower()}, sums in {guarantee.accumulator.name.lower()}",
        f"partial sums stored as {guarantee.partial_sums.name.lower()}",
        bits,
        "a row's bits do not depend on the other rows" if guarantee.batch_invariant
        else "a row's bits may depend on how many rows there are",
    ]  # fmt: skip
    return "; ".join(parts)

"""Lists of module names and patterns in a configuration: skip lists and targets.

A plain entry matches whole dotted components: `kv_proj` is in `a.kv_proj`, not in `a.qkv_proj`. What follows `re:` must
match from the start of the name on. Plain entries are looked up; a list may have one for each layer. Regular
expressions come from the file too, and Python's matcher backtracks: those that could search exponentially match
nothing, and the others share a time limit.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from functools import cached_property

from baracuda_py.errors import CheckpointError

__all__ = ["READ", "Patterns", "matches"]

_REGEX = "re:"
_LENGTH_LIMIT = 256
_UNBOUNDED_LIMIT = 3
READ = (
    f"one has {_LENGTH_LIMIT} characters at most, {_UNBOUNDED_LIMIT} repetitions without a bound, and none of a group"
)
"""Which regular expressions are matched."""
# Of all matches of one list. A few patterns take milliseconds for a thousand layers.
_SECONDS = 2.0


class Patterns:
    """A list of entries, from `file`."""

    def __init__(self, entries: Iterable[str], file: object) -> None:
        entries = dict.fromkeys(entries)
        self._file = file
        self._plain = frozenset(entry for entry in entries if entry and not entry.startswith(_REGEX))
        self._sources = [entry[len(_REGEX) :] for entry in entries if entry.startswith(_REGEX)]
        self._compiled: list[re.Pattern[str]] | None = None
        self._seconds = 0.0

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """Regular expressions that match nothing because they could take forever."""
        return tuple(source for source in self._sources if not _ends_soon(source))

    def match(self, module: str) -> bool:
        """Whether an entry names `module`.

        Raises:
            CheckpointError: the regular expressions have taken too long altogether.
        """
        return self._named(module) or (bool(self._sources) and self._expressed(module))

    def _named(self, module: str) -> bool:
        if not self._plain:
            return False
        parts = module.split(".")
        if len(parts) ** 2 > len(self._plain):
            return any(f".{entry}." in f".{module}." for entry in self._plain)
        runs = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        return any(run in self._plain for run in runs)

    def _expressed(self, module: str) -> bool:
        if len(module) > _LENGTH_LIMIT:
            return False
        start = time.perf_counter()
        try:
            if self._compiled is None:
                self._compiled = []
                for source in self._sources:
                    self._check(start, module)
                    self._compiled += _compiled(source)
            for pattern in self._compiled:
                self._check(start, module)
                if pattern.match(module) is not None:
                    return True
            return False
        finally:
            self._seconds += time.perf_counter() - start

    def _check(self, start: float, module: str) -> None:
        if self._seconds + time.perf_counter() - start > _SECONDS:
            raise CheckpointError(
                self._file, f"matching module names must take less than {_SECONDS:.0f} s", tensor=module,
                rule="pattern", got=f"{len(self._sources)} regular expressions that take longer",
            )  # fmt: skip


def matches(entry: str, module: str) -> bool:
    """Whether one entry names `module`."""
    return Patterns([entry], "").match(module)


def _compiled(source: str) -> list[re.Pattern[str]]:
    """The pattern, or nothing for one that is none, or that could take forever."""
    if not _ends_soon(source):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that may mean something else one day
            return [re.compile(source)]
    except (re.error, RecursionError, OverflowError):
        return []


def _ends_soon(source: str) -> bool:
    """Short, no repeated group and no back-reference, and few unbounded repetitions: no exponential search."""
    if len(source) > _LENGTH_LIMIT:
        return False
    plain = re.sub(r"\\\D", "_", source)
    unbounded = len(re.findall(r"[*+]|\{\d*,\d*\}", plain))
    return unbounded <= _UNBOUNDED_LIMIT and not re.search(r"\)[*+{]|\\\d|\(\?P=", plain)

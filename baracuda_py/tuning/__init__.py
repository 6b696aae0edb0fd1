"""Tuning tables: the times of kernels on GPUs that were measured, which correct the estimates that `select` goes by.

Tables are JSON files, one a GPU: those of the package, and those in the folder that the environment variable
`BARACUDA_PY_TUNING` names, which `baracuda-py tune` writes. What the user's tables hold of a GPU comes before what the
package's hold of it, time by time.

    {"gpu": ..., "capability": "sm_90", "sm_count": 132, "driver": ..., "commit": ..., "ops": {"int4_awq_gemm": [
      {"problem": {"m": 1, "ic": 4096, "oc": 4096}, "us": {"sm80.bespoke.small_m_oc_major": 8.1, ...}}, ...]}}
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baracuda_py.errors import InvalidProblem
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.tuning import Problem, TuningTable

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = [
    "FOLDER",
    "device_of",
    "known_tables",
    "load_table",
    "read_table",
    "slug",
    "table_for",
    "table_json",
    "tables_for",
    "write_table",
    "write_text",
]

FOLDER = "BARACUDA_PY_TUNING"


def slug(name: str) -> str:
    """A file name: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table_for(device: Device, op: str | None = None) -> TuningTable | None:
    """What was measured on this GPU; else on the one that is most like it, of the same compute capability; else None.

    With `op`, of tables that hold problems of it. Nothing is read for the host.

    Raises:
        InvalidProblem: the user's folder is none, or a file in it is no table.
    """
    found = tables_for(device, op)
    return _merged(found) if found else None


def tables_for(device: Device, op: str | None = None) -> tuple[TuningTable, ...]:
    """The tables that `table_for` merges: of two times of a GPU, a kernel and a problem, the first table's counts."""
    if device.kind == "host":
        return ()

    def unlike(table: TuningTable) -> tuple[bool, int]:
        return slug(table.device.name) != slug(device.name), abs(table.device.sm_count - device.sm_count)

    def of_op(table: TuningTable) -> bool:
        return any(problems for name, problems in table.problems.items() if op in (None, name))

    alike = [t for t in known_tables() if t.device.capability == device.capability and of_op(t)]
    least = min(map(unlike, alike), default=None)
    # Times are compared with what the cost model says of one device, so a merged table has one number of SMs.
    by_sm_count: dict[int, list[TuningTable]] = {}
    for table in alike:
        if unlike(table) == least:
            by_sm_count.setdefault(table.device.sm_count, []).append(table)
    return tuple(max(by_sm_count.values(), key=_problem_count, default=()))


def known_tables() -> tuple[TuningTable, ...]:
    """Every table: the user's, then the package's. Raises as `table_for`."""
    return _tables(os.environ.get(FOLDER, ""))


def _problem_count(tables: Iterable[TuningTable]) -> int:
    return sum(len(problems) for table in tables for problems in table.problems.values())


@cache
def _tables(folder: str) -> tuple[TuningTable, ...]:
    return tuple(_read_all(folder))


def _read_all(folder: str) -> Iterator[TuningTable]:
    if folder:
        try:
            paths = sorted(path for path in Path(folder).iterdir() if path.suffix == ".json")
        except OSError as error:
            raise InvalidProblem(
                FOLDER, "it must name a folder of tuning tables", rule="tuning folder", value=folder,
                why=_what(error), fix=f"Create it with `baracuda-py tune ... --output DIR`, or unset {FOLDER}",
            ) from None  # fmt: skip
        for path in paths:
            yield load_table(path)
    for entry in sorted(files(__name__).joinpath("tables").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            yield load_table(entry)


@cache
def _merged(tables: tuple[TuningTable, ...]) -> TuningTable:
    """One table of what several hold. A problem's times, which are compared with one another, are of one GPU: of that
    with the most, of equals the first."""
    if len(tables) == 1:
        return tables[0]
    ops: dict[str, dict[str, dict[str, Problem]]] = {}
    for table in tables:
        for op, problems in table.problems.items():
            for problem in problems:
                of_gpus = ops.setdefault(op, {}).setdefault(json.dumps(problem.fields, sort_keys=True), {})
                gpu = slug(table.device.name)
                known = of_gpus[gpu].times_us if gpu in of_gpus else {}
                of_gpus[gpu] = Problem(problem.fields, {**problem.times_us, **known})
    made = {
        op: tuple(max(of_gpus.values(), key=lambda one: len(one.times_us)) for of_gpus in problems.values())
        for op, problems in ops.items()
    }
    return TuningTable(
        tables[0].device, made, tables[0].origin, ", ".join(table.where for table in tables)
    )  # fmt: skip


def load_table(path: Path | Traversable) -> TuningTable:
    """The table in a file; InvalidProblem, naming the file, if it cannot be read or is none."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _no_table(str(path), error) from None
    return read_table(text, str(path))


def read_table(text: str, where: str) -> TuningTable:
    """A table from its JSON; InvalidProblem, naming `where`, if it is none."""
    try:
        given = json.loads(text)
        device = device_of(given)
        problems = {
            op: tuple(Problem({**one["problem"]}, {k: _time_us(us) for k, us in one["us"].items()}) for one in measured)
            for op, measured in given["ops"].items()
        }
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise _no_table(where, error) from None
    known = ("ops", "gpu", "capability", "sm_count")
    return TuningTable(device, problems, {key: value for key, value in given.items() if key not in known}, where)


def device_of(given: Any) -> Device:
    """The GPU that a table's or a result file's gpu, capability and sm_count say; KeyError or ValueError if none."""
    name, sm_count = given["gpu"], int(given["sm_count"])
    capability = re.fullmatch(r"sm_(\d+)(\d)", given["capability"])
    if capability is None or not isinstance(name, str) or sm_count <= 0:
        raise ValueError("gpu, capability and sm_count must say which GPU it is of")
    return Device("cuda", None, (int(capability[1]), int(capability[2])), sm_count, name)


def _time_us(given: Any) -> float:
    time_us = float(given)
    if not (math.isfinite(time_us) and time_us > 0):
        raise ValueError(f"a time must be finite and above 0, not {given!r}")
    return time_us


def _no_table(where: str, error: Exception) -> InvalidProblem:
    return InvalidProblem(
        where, "a tuning table must be as `baracuda-py tune` writes it", rule="tuning table", why=_what(error),
        fix=f"Remove the file, or unset {FOLDER}",
    )  # fmt: skip


def _what(error: Exception) -> str:
    # An OSError's own text repeats the path.
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def write_table(table: TuningTable, path: Path) -> None:
    """Write what `load_table` reads, as `write_text`."""
    write_text(path, table_json(table))


def write_text(path: Path, text: str) -> None:
    """Replace a file; whoever reads meanwhile, and whoever is stopped, finds the old one or the new.

    Raises:
        OSError: it cannot be written; it names `path`.
    """
    target = Path(os.path.realpath(path))
    made = target.with_name(f".{target.name}.saving-{secrets.token_hex(4)}")
    try:
        with made.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, target)
    except OSError as error:  # which names the file that was to take its place, or none
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)


def table_json(table: TuningTable) -> str:
    """What `read_table` reads; a problem a line."""
    assert table.device.capability is not None
    head: Mapping[str, Any] = {
        "gpu": table.device.name, "capability": "sm_{}{}".format(*table.device.capability),
        "sm_count": table.device.sm_count, **table.origin,
    }  # fmt: skip
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    ops = [
        f"  {json.dumps(op)}: [\n"
        + ",\n".join(f"   {json.dumps({'problem': one.fields, 'us': one.times_us})}" for one in problems)
        + "\n  ]"
        for op, problems in table.problems.items()
    ]
    return "{\n" + ",\n".join(lines) + ',\n "ops": {\n' + ",\n".join(ops) + "\n }\n}\n"

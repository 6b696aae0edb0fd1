"""Tuning tables: the times of kernels on GPUs that were measured, which correct the estimates that `select` goes by.

Tables are JSON files, one a GPU: those of the package, and those in the folder that the environment variable
`BARACUDA_PY_TUNING` names, which `baracuda-py tune` writes and which come first.

    {"gpu": ..., "capability": "sm_90", "sm_count": 132, "driver": ..., "commit": ..., "ops": {"int4_awq_gemm": [
      {"problem": {"m": 1, "ic": 4096, "oc": 4096}, "us": {"sm80.bespoke.small_m_oc_major": 8.1, ...}}, ...]}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from baracuda_py.errors import InvalidProblem
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.tuning import Problem, TuningTable

__all__ = ["FOLDER", "read_table", "slug", "table_for", "table_json"]

FOLDER = "BARACUDA_PY_TUNING"


def slug(name: str) -> str:
    """A file name: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table_for(device: Device) -> TuningTable | None:
    """The table of this GPU; else that of the one that is most like it, of the same compute capability; else None.

    Raises InvalidProblem for a file in the user's folder that is no table.
    """
    alike = [table for table in _tables(os.environ.get(FOLDER, "")) if table.device.capability == device.capability]
    if device.kind == "host" or not alike:
        return None
    return min(alike, key=lambda table: (slug(table.device.name) != slug(device.name),
                                         abs(table.device.sm_count - device.sm_count)))  # fmt: skip


@cache
def _tables(folder: str) -> tuple[TuningTable, ...]:
    """The user's first, so that they are taken before the package's."""
    return tuple(_read_all(folder))


def _read_all(folder: str) -> Iterator[TuningTable]:
    if folder:
        for path in sorted(Path(folder).glob("*.json")):
            yield read_table(path.read_text("utf-8"), str(path))
    for entry in sorted(files(__name__).joinpath("tables").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            yield read_table(entry.read_text("utf-8"), entry.name)


def read_table(text: str, where: str) -> TuningTable:
    """A table from its JSON; InvalidProblem, naming `where`, if it is none."""
    try:
        given = json.loads(text)
        capability = re.fullmatch(r"sm_(\d+)(\d)", given["capability"])
        assert capability is not None
        device = Device("cuda", None, (int(capability[1]), int(capability[2])), int(given["sm_count"]), given["gpu"])
        problems = {
            op: tuple(Problem(dict(one["problem"]), {k: float(us) for k, us in one["us"].items()}) for one in measured)
            for op, measured in given["ops"].items()
        }
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidProblem(
            where, "a tuning table must be as `baracuda-py tune` writes it", rule="tuning table",
            why=f"{type(error).__name__}: {error}", fix=f"Remove the file, or unset {FOLDER}",
        ) from None  # fmt: skip
    known = ("ops", "gpu", "capability", "sm_count")
    return TuningTable(device, problems, {key: value for key, value in given.items() if key not in known})


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

"""What adds the parts of a launch that it waits for loads them past the read-only cache, which no wait holds back."""

from __future__ import annotations

import pytest

from baracuda_py import sys as kernels
from baracuda_py.sys.sources import ptx_entries

FINISHES = [
    (module, entry)
    for module in kernels.modules() for entry in module.entries if entry.endswith("_finish")
]  # fmt: skip


def _body(text: str, entry: str) -> str:
    """The PTX of one entry point."""
    return text.partition(f".entry {entry}(")[2].partition(".entry ")[0]


def test_they_are_found():
    there = {entry.name for module, _ in FINISHES for entry in ptx_entries(module.ptx.decode())}
    assert len(FINISHES) >= 40
    assert {entry for _, entry in FINISHES} <= there


@pytest.mark.parametrize(("module", "entry"), FINISHES, ids=lambda value: getattr(value, "name", value))
def test_a_second_launch_waits_before_its_first_load_and_loads_nothing_read_only(module, entry):
    body = _body(module.ptx.decode(), entry)
    before, wait, _ = body.partition("griddepcontrol.wait;")
    assert wait
    assert "ld.global" not in before
    assert "ld.relaxed" not in before
    assert "ld.global.nc" not in body

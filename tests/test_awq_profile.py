"""What benchmarks/awq_profile.py reads of Nsight Compute's table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "awq_profile.py"
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"


@pytest.fixture
def profile(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("awq_profile", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "awq_profile", module)
    spec.loader.exec_module(module)
    return module


def test_counters_are_given_in_one_unit(profile):
    units = dict.fromkeys(profile._COUNTERS.values(), "%")
    units |= {STALL.format(name): "inst" for name in ("wait", "barrier")}
    units |= {"gpu__time_duration.sum": "ms", "sm__cycles_elapsed.avg.per_second": "Ghz",
              "dram__bytes_read.sum": "Mbyte", "launch__registers_per_thread": "register/thread"}  # fmt: skip
    row = dict.fromkeys(units, "12.5") | {"Kernel Name": "k", STALL.format("wait"): "3", STALL.format("barrier"): "1"}
    row |= {"gpu__time_duration.sum": "1,234.5", "sm__cycles_elapsed.avg.per_second": "1.5"}
    found = profile._kernel(row, units)
    assert found["time_us"] == 1_234_500
    assert found["clock_mhz"] == 1500
    assert found["tensor_active"] == 0.125
    assert found["dram_nbytes"] == 12_500_000
    assert found["stalls"] == {"wait": 0.75, "barrier": 0.25}
    units["gpu__time_duration.sum"] = "fortnight"
    with pytest.raises(KeyError):
        profile._kernel(row, units)

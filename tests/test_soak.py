"""The soak, short: on the host and against the stub of libcuda; and that it finds what it looks for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PATCHED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import soak
soak.WARM_S, soak.SAMPLES = 0.5, 1
{patch}
sys.exit(soak.main())
"""
PATCHES = {
    "a leak": """
from baracuda_py.plan import Plan
kept, run = [], Plan.run
Plan.run = lambda *given: (kept.append(bytearray(100)), run(*given))[1]
""",
    "a wrong result": """
import threading
before = soak.inputs_for
def other(op, descriptor):
    given = before(op, descriptor)
    if threading.current_thread() is not threading.main_thread():
        given["bias" if given.get("bias") is not None else next(iter(given))].flat[0] = 1
    return given
soak.inputs_for = other
""",
}


def soaked(device, output, *, calls, seconds, patch=None):
    script = [str(BENCHMARKS / "soak.py")] if patch is None else ["-c", PATCHED.format(patch=patch), str(BENCHMARKS)]
    options = ["--device", device, "--calls", str(calls), "--seconds", str(seconds), "--rate-seconds", "0.01"]
    done = subprocess.run(
        [sys.executable, *script, *options, "--output", str(output)], capture_output=True, text=True, timeout=300
    )
    assert output.exists(), done.stderr
    return done.returncode, json.loads(output.read_text())


@pytest.mark.parametrize(("device", "calls"), [("host", 2000), ("stub", 20_000)])
def test_threads_that_share_plans_get_their_own_results_and_keep_no_memory(device, calls, tmp_path):
    if device == "stub" and not (sys.platform.startswith("linux") and (shutil.which("cc") or shutil.which("gcc"))):
        pytest.skip("the stub of libcuda needs Linux and a C compiler")
    code, record = soaked(device, tmp_path / "soak.json", calls=calls, seconds=1)
    found = record["soak"]
    assert found["threads"] == 8
    assert found["growth_over_calls"] >= calls
    assert found["compared"] >= 8 * 2 * len(record["plans"]) >= 8 * 2 * 6
    assert (found["wrong"], record["kept"], code) == (0, True, 0), found
    kinds = {"run", "bound"} | ({"bare launch"} if device == "stub" else set())
    assert {(row["kind"], row["threads"]) for row in record["rates"]} == {(k, n) for k in kinds for n in (1, 2, 4, 8)}


@pytest.mark.parametrize("defect", PATCHES)
def test_the_soak_finds(defect, tmp_path):
    code, record = soaked("host", tmp_path / "soak.json", calls=2000, seconds=0.5, patch=PATCHES[defect])
    assert (code, record["kept"]) == (1, False)
    assert (record["soak"]["wrong"] > 0) == (defect == "a wrong result")

"""GPU tests under the sanitizer: a tool that hangs is ended with its children, and none is clean for nothing."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_tests.py"

TOOL = """#!{python}
import subprocess, sys, time
{body}
"""


@pytest.fixture
def gpu_tests(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_tests", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec.loader.exec_module(module)
    return module


def tool(folder, body):
    path = folder / "compute-sanitizer"
    path.write_text(TOOL.format(python=sys.executable, body=body))
    path.chmod(0o755)
    return str(path)


def test_a_tool_that_hangs_is_ended_with_its_children(gpu_tests, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tests, "SANITIZER_LIMIT_S", 2)
    beat = tmp_path / "beat"
    child = f"import time\\nwhile True: open({str(beat)!r}, 'a').write('.'); time.sleep(0.05)"
    program = tool(tmp_path, f"subprocess.run([sys.executable, '-c', \"{child}\"])")
    outcome = gpu_tests._sanitize(program, "memcheck", 0, 1)
    assert outcome["status"] == "failed"
    assert "not done after 2 s" in outcome["output"]
    assert beat.stat().st_size, "the child ran"
    before = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == before


@pytest.mark.parametrize(("calls", "status"), [((3, 0), "clean"), ((0, 0), "failed")])
def test_no_call_at_all_is_not_clean(gpu_tests, tmp_path, calls, status):
    outcomes = [
        gpu_tests._sanitize(
            tool(tmp_path, f"print('calls: {count}'); print('ERROR SUMMARY: 0 errors')"), "memcheck", shard, 2
        )
        for shard, count in enumerate(calls)
    ]
    assert [one["status"] for one in outcomes] == ["clean", "clean"]
    together = gpu_tests._together(outcomes)
    assert (together["status"], together["calls"]) == (status, sum(calls))

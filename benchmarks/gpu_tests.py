"""Whether every kernel passes its tests on this machine's GPU, and, with `--sanitizer`, compute-sanitizer.

    python benchmarks/gpu_tests.py [--sanitizer [TOOL ...]] [--output FILE] [-- PYTEST ARGUMENTS]

Runs `pytest -m gpu` in several processes and writes benchmarks/results/<gpu>/gpu-tests.json: the machine, the counts,
and the sha256 of every PTX module that was launched, by which a test knows whether a GPU has run what is committed. The
file is there before the sanitizer starts; racecheck sees no call that NVIDIA's libraries have a part in. Ends with
pytest's exit code, or 1 when a sanitizer found something.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import _gpu_launches  # noqa: E402
from machine import gpu_environment, gpu_results, run_within, write_result  # noqa: E402

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SLOWEST = 10
SANITIZER_LIMIT_S = 240.0  # of one process: what is stuck under a tool must not keep the others' word from being heard
FOUND = 86  # exit code by which compute-sanitizer says that it found something


def main() -> int:
    options = _parser().parse_args()
    os.environ["BARACUDA_PY_REQUIRE_GPU"] = "1"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take 75 % of memory
    facts = gpu_environment()
    path = options.output or gpu_results() / "gpu-tests.json"
    recorder = Recorder()
    start = time.perf_counter()
    tests = [str(ROOT / "tests")] if not any(Path(a.split("::")[0]).exists() for a in options.pytest) else []
    arguments = ["-m", "gpu", "-q", "-n", str(options.jobs), "-p", _gpu_launches.__name__, "--rootdir", str(ROOT)]
    exit_code = int(pytest.main([*arguments, *tests, *options.pytest], plugins=[recorder]))
    record = {**facts, "tests": {**recorder.summary(), "duration_s": round(time.perf_counter() - start, 1)}}
    record["tests"]["exit_code"] = exit_code
    record["ptx"] = dict(sorted(_gpu_launches.LAUNCHED.items()))
    write_result(path, record | {"headlines": _headlines(record)})
    if options.sanitizer is not None:
        record["sanitizer"] = sanitize(options.sanitizer or TOOLS, options.jobs)
        write_result(path, record | {"headlines": _headlines(record)})
    clean = all(found["status"] == "clean" for found in record.get("sanitizer", {}).values())
    print(f"{path}: {recorder.counts['passed']} passed, {recorder.counts['failed']} failed", file=sys.stderr)
    return exit_code or (0 if clean else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitizer", nargs="*", choices=TOOLS, metavar="TOOL", help="all four when none is named")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 12), help="processes at a time")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<gpu>/gpu-tests.json")
    parser.add_argument("pytest", nargs="*", help="further arguments of pytest, behind --")
    return parser


class Recorder:
    """A pytest plugin: counts outcomes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.durations: dict[str, float] = {}
        self.failures: list[str] = []
        self.skips: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        if report.when == "call":
            self.durations[report.nodeid] = report.duration
        if report.failed:
            self.counts["failed" if report.when == "call" else "errors"] += 1
            self.failures.append(report.nodeid)
        elif report.skipped:
            self.counts["skipped"] += 1
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips[reason] += 1
        elif report.when == "call":
            self.counts["passed"] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is an error too."""
        if report.failed:
            self.counts["errors"] += 1
            self.failures.append(report.nodeid)

    def summary(self) -> dict[str, Any]:
        """What the record says about the tests."""
        slowest = sorted(self.durations.items(), key=lambda item: -item[1])[:SLOWEST]
        return {
            **{name: self.counts[name] for name in ("passed", "failed", "errors", "skipped")},
            "failures": self.failures,
            "skip_reasons": dict(self.skips),
            "slowest_s": {name: round(seconds, 2) for name, seconds in slowest},
        }


def sanitize(tools: list[str] | tuple[str, ...], jobs: int) -> dict[str, Any]:
    """Run every kernel's examples once under each tool, spread over `jobs` processes."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {tool: {"status": "unavailable", "why": "compute-sanitizer is not installed"} for tool in tools}
    shards = max(1, jobs // 2)
    tasks = [(tool, shard) for shard in range(shards) for tool in tools]
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda task: (task[0], _sanitize(program, *task, shards)), tasks))
    return {tool: _together([outcome for name, outcome in outcomes if name == tool]) for tool in tools}


def _sanitize(program: str, tool: str, shard: int, shards: int) -> dict[str, Any]:
    start = time.perf_counter()
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "4", sys.executable]
    command += [str(HERE / "_sanitized.py"), f"{shard}/{shards}"]
    if tool == "racecheck":  # racecheck now and then reports races within one of cuBLASLt's kernels
        command.append("--ours")
    status, text = run_within(command, SANITIZER_LIMIT_S, cwd=ROOT)
    if status is None:
        return {
            "status": "failed", "errors": 0, "calls": 0, "duration_s": SANITIZER_LIMIT_S,
            "output": f"{_excerpt(text)}\nnot done after {SANITIZER_LIMIT_S} s",
        }  # fmt: skip
    # "ERROR SUMMARY: 0 errors", or "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    found = re.findall(r"SUMMARY: (\d+) (?:errors?|hazards? displayed)", text)
    calls = re.findall(r"^calls: (\d+)$", text, re.MULTILINE)
    ran = status in (0, FOUND) and bool(found) and bool(calls)
    errors = sum(map(int, found))
    return {
        "status": ("clean" if errors == 0 and status == 0 else "errors") if ran else "failed",
        "errors": errors,
        "calls": sum(map(int, calls)),
        "duration_s": round(time.perf_counter() - start, 1),
        "output": "" if ran and errors == 0 else _excerpt(text),
    }


def _excerpt(text: str) -> str:
    """The first thing that a tool found with the case that it found it in, and the end."""
    lines = text.splitlines()
    found = (i for i, line in enumerate(lines) if re.match(r"========= (?!COMPUTE-SANITIZER)\S", line))
    first = next(found, len(lines))
    case = next((line for line in reversed(lines[:first]) if line.startswith("case: ")), "")
    return "\n".join([case, *lines[first : first + 12], "...", *lines[-12:]])


def _together(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max((outcome["status"] for outcome in outcomes), key=("clean", "errors", "failed").index)
    together: dict[str, Any] = {name: sum(outcome[name] for outcome in outcomes) for name in ("errors", "calls")}
    together["duration_s"] = max(outcome["duration_s"] for outcome in outcomes)
    if not together["calls"]:
        worst = "failed"  # a shard may have no call to run, but not all of them
    outputs = [outcome["output"] for outcome in outcomes if outcome["output"]]
    return {"status": worst, **together, **({"output": outputs[0]} if outputs else {})}


def _headlines(record: dict[str, Any]) -> list[dict[str, Any]]:
    tests = record["tests"]
    lines = [
        {"what": f"GPU tests passed on {record['gpu']}", "value": tests["passed"], "unit": ""},
        {"what": f"GPU tests failed on {record['gpu']}", "value": tests["failed"] + tests["errors"], "unit": ""},
    ]
    for tool, found in record.get("sanitizer", {}).items():
        value = found["errors"] if found["status"] in ("clean", "errors") else found["status"]
        lines.append({"what": f"compute-sanitizer {tool} on {record['gpu']}", "value": value, "unit": "errors"})
    return lines


if __name__ == "__main__":
    sys.exit(main())

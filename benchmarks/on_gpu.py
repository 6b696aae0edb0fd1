"""All that one GPU can show, in one command: its tests, under the sanitizer too, then its benchmarks.

    python benchmarks/on_gpu.py [--minutes 20] [--only NAME ...] [--archive FILE.tar.gz]

Each script runs in a process of its own, the record of the tests first, those that take long last; what fails or takes
too long is told, and the next one begins. Nothing starts that might not end within `--minutes`. `--archive` packs what
was written, for a machine that will not be there later. Ends with 1 unless all succeeded, at once without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import time
from pathlib import Path

from attrs import frozen
from machine import check_gpu, commit, run_within

from baracuda_py.bench.environment import COMMIT

HERE = Path(__file__).parent


@frozen
class Step:
    """What is run: a script with arguments, and the seconds after which it is stuck."""

    name: str
    script: str
    arguments: tuple[str, ...]
    limit_s: float


_BENCH = ("--no-plot", "--budget")
_DECODE = ("--preset", "frontier", "--layout", "tiled", "--layout", "hf_gemm")
_TILED = ("--output", str(HERE / "results" / "{device}" / "awq_tiled"), *_BENCH)
_APART = ("--layout", "oc_major", "--layout", "hf_gemm")
_OTHER = ("--output", str(HERE / "results" / "{device}" / "awq_other"), *_BENCH)
_VARIANTS = ("--output", str(HERE / "results" / "{device}" / "awq_variants"), *_BENCH)
_GROUPS = ("--group-size", "32", "--group-size", "64")
_MODELS = tuple(
    word for name in ("qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-32b", "mixtral-8x7b") for word in ("--preset", name)
)
STEPS = (
    Step("tests", "gpu_tests.py", ("--sanitizer",), 420),
    Step("host_overhead", "host_overhead.py", (), 60),
    Step("awq_linear", "awq_linear.py", (), 60),
    Step("awq_repack", "awq_repack.py", (), 90),
    Step("models", "models.py", (), 240),
    # Decoding; then many rows of TILED weights, those between tiles too; then what the first leaves out.
    Step("awq", "awq.py", (*_BENCH, "4m", *_DECODE, "--m", "1,2,4,8,16,32", "--replace"), 300),
    Step(
        "awq_tiled",
        "awq.py",
        (*_TILED, "3m", "--preset", "frontier", "--layout", "tiled", "--m", "64,128,256,512,1024,4096", "--replace"),
        240,
    ),
    Step(
        "awq_ragged",
        "awq.py",
        (*_TILED, "1m", "--shape", "14336x4096", "--layout", "tiled", "--m", "65,100,200,300,1000,3000"),
        120,
    ),
    Step("awq_other", "awq.py", (*_OTHER, "5m", "--preset", "frontier", *_APART, "--replace"), 360),
    # Other elements and groups, and layers of further models.
    Step(
        "awq_bf16",
        "awq.py",
        (*_VARIANTS, "1m", "--preset", "frontier", "--m", "1,16,512", "--element", "bf16", "--replace"),
        120,
    ),
    Step("awq_groups", "awq.py", (*_VARIANTS, "1m", "--preset", "frontier", "--m", "1,16", *_GROUPS), 120),
    Step("awq_models", "awq.py", (*_VARIANTS, "2m", *_MODELS, "--m", "1,16"), 180),
    Step("awq_profile", "awq_profile.py", (), 150),
    Step("soak", "soak.py", (), 120),
)


def main(steps: tuple[Step, ...] = STEPS) -> int:
    options = _parser(steps).parse_args()
    check_gpu()  # or nothing begins: some steps would measure the host instead
    start = time.monotonic()
    os.environ.setdefault(COMMIT, commit())  # before results are written, which are files of the checkout
    outcomes = {}
    for step in steps:
        if options.only and step.name not in options.only:
            continue
        left_s = 60 * options.minutes - (time.monotonic() - start)
        outcomes[step.name] = _run(step) if step.limit_s <= left_s else "no time left"
        print(f"{step.name}: {outcomes[step.name]}", file=sys.stderr, flush=True)
        if options.archive:
            _pack(options.archive, since=time.time() - (time.monotonic() - start))
    return 0 if all(outcome.startswith("done") for outcome in outcomes.values()) else 1


def _parser(steps: tuple[Step, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for all of it")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in steps], metavar="NAME")
    parser.add_argument("--archive", type=Path, help="a tar.gz of the result files that were written, kept current")
    return parser


def _run(step: Step) -> str:
    """How a script ended; what it printed is shown if it failed."""
    start = time.monotonic()
    command = [sys.executable, str(HERE / step.script), *step.arguments]
    status, printed = run_within(command, step.limit_s)
    took = f"{time.monotonic() - start:.0f} s"
    if status == 0:
        return f"done in {took}"
    print(printed[-4000:], file=sys.stderr)
    return f"stopped after {step.limit_s:.0f} s" if status is None else f"ended with {status} after {took}"


def _pack(archive: Path, since: float) -> None:
    """The result files that are newer than `since`, by their paths below `benchmarks`."""
    written = [path for path in sorted((HERE / "results").rglob("*.*")) if path.stat().st_mtime >= since]
    with tarfile.open(archive, "w:gz") as packed:
        for path in written:
            packed.add(path, path.relative_to(HERE))


if __name__ == "__main__":
    sys.exit(main())

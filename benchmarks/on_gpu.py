"""All that one GPU can show, in one command: its tests, under the sanitizer too, then its benchmarks.

    python benchmarks/on_gpu.py [--minutes 20] [--only NAME ...] [--archive FILE.tar.gz]

Each script runs in a process of its own, the record of the tests first, those that take long last; what fails or takes
too long is told, and the next one begins. Nothing starts that might not end within `--minutes`. `--archive` packs what
was written, for a machine that will not be there later. Ends with 1 unless all succeeded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from attrs import frozen

HERE = Path(__file__).parent


@frozen
class Step:
    """A script with its arguments, and the seconds after which it is stuck."""

    script: str
    arguments: tuple[str, ...]
    limit_s: float


STEPS = (
    Step("gpu_tests.py", ("--sanitizer",), 420),
    Step("host_overhead.py", (), 60),
    Step("awq_linear.py", (), 60),
    Step("awq_repack.py", (), 90),
    Step("awq.py", ("--preset", "frontier", "--no-plot", "--budget", "5m"), 360),
    Step("models.py", (), 240),
    Step("soak.py", (), 120),
)


def main(steps: tuple[Step, ...] = STEPS) -> int:
    options = _parser(steps).parse_args()
    start = time.monotonic()
    outcomes = {}
    for step in steps:
        if options.only and Path(step.script).stem not in options.only:
            continue
        left_s = 60 * options.minutes - (time.monotonic() - start)
        outcomes[step.script] = _run(step) if step.limit_s <= left_s else "no time left"
        print(f"{step.script}: {outcomes[step.script]}", file=sys.stderr, flush=True)
        if options.archive:
            _pack(options.archive, since=time.time() - (time.monotonic() - start))
    return 0 if all(outcome.startswith("done") for outcome in outcomes.values()) else 1


def _parser(steps: tuple[Step, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for all of it")
    parser.add_argument("--only", nargs="+", choices=[Path(step.script).stem for step in steps], metavar="NAME")
    parser.add_argument("--archive", type=Path, help="a tar.gz of the result files that were written, kept current")
    return parser


def _run(step: Step) -> str:
    """How a script ended; what it printed is shown if it failed."""
    start = time.monotonic()
    command = [sys.executable, str(HERE / step.script), *step.arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=step.limit_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        print((late.stdout or b"").decode(errors="replace")[-4000:], file=sys.stderr)
        return f"stopped after {step.limit_s:.0f} s"
    took = f"{time.monotonic() - start:.0f} s"
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
        return f"ended with {done.returncode} after {took}"
    return f"done in {took}"


def _pack(archive: Path, since: float) -> None:
    """The result files that are newer than `since`, by their paths below `benchmarks`."""
    written = [path for path in sorted((HERE / "results").rglob("*.*")) if path.stat().st_mtime >= since]
    with tarfile.open(archive, "w:gz") as packed:
        for path in written:
            packed.add(path, path.relative_to(HERE))


if __name__ == "__main__":
    sys.exit(main())

"""Fuzzes the checkpoint readers: spoilt folders go in; results, or the package's own errors, may come out.

    python tests/checkpoints/fuzz.py [--count 20000] [--seed 0] [--output FILE] [--only NUMBER]

Each input is a valid checkpoint of some format and storage, spoilt in up to four ways (mutations.py). It is inspected,
reported as the command line does, and opened; each layer and tensor is read, some are transcoded and cut. The law:

    errors    nothing but CheckpointError and UnsupportedCheckpoint, which name a file of the checkpoint, and the tensor
              where the layer is known; no warning
    screen    a report holds no control characters, whatever the names in the files
    time      an input takes less than TIME_LIMIT_S
    reach     no file outside the checkpoint's folder is opened, no folder outside it listed: an audit hook sees to it
    memory    the resident size grows by less than RSS_LIMIT while an input is read; private memory has a hard limit

Prints what broke the law, writes the report, and ends with 1 if there was anything. `--only` repeats one input and
shows where its errors come from.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field
from mutations import MUTATIONS, build, write
from whole_checkpoints import BASES, Base

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat, PackedLayer, transcode
from baracuda_py.checkpoints.shard import shard
from baracuda_py.checkpoints.splitting import SplitAxis
from baracuda_py.cli.inspect import show
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout

TIME_LIMIT_S = 10.0
RSS_LIMIT = 256 << 20  # bytes
_PRIVATE_ROOM = 2 << 30  # bytes that the process may have of its own, above what it has at the start
_TRANSCODED_NBYTES = 1 << 22  # larger layers are only touched
_SHOWN = 20
_SCRATCH = "/dev/shm"  # in memory, where there is such a folder
# What leaves the files readable comes more often: it gets further.
_SUBTLE = ("tensors", "data_bits", "settings", "config_json", "dtypes", "shapes", "index_json", "header_spaces")
_KINDS = (*MUTATIONS, *_SUBTLE * 3)
_WATCHED = ("open", "os.listdir", "os.scandir", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


class Hang(BaseException):
    """An input took too long; no `except Exception` catches it."""


class Reach(BaseException):
    """A file outside was opened."""


class Screen(Exception):
    """A name reached the terminal as it is."""


@define
class Guard:
    """The audit hook: while `root` is set, nothing outside of it may be opened or listed."""

    root: str = ""

    def install(self) -> None:
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root or event not in _WATCHED:
            return
        path = arguments[0]
        if event == "open" and isinstance(path, int):
            return  # a descriptor; its file was seen when it was opened
        root, self.root = self.root, ""
        real = os.path.realpath(os.fspath(path)) if isinstance(path, (str, bytes, os.PathLike)) else repr(path)
        self.root = root
        if not Path(os.fsdecode(real)).is_relative_to(root):
            self.root = ""
            raise Reach(f"{event} {os.fsdecode(real)}")


@contextlib.contextmanager
def limited(guard: Guard, root: Path) -> Iterator[None]:
    """The laws of reach and time, while the block runs."""
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    guard.root = os.path.realpath(root)
    try:
        yield
    finally:
        guard.root = ""
        signal.setitimer(signal.ITIMER_REAL, 0)


def exercise(path: Path, source: random.Random) -> Iterator[tuple[str, str, Any]]:
    """Every step as (step, layer, outcome), the outcome a short text or the error it ended with."""
    axis, degree = source.choice(list(SplitAxis)), source.choice((1, 2, 3, 4, 8))
    device = source.choice(("host", "sm_90"))
    shown = source.random() < 0.25

    def inspected() -> str:
        inspection = checkpoints.inspect(path, device)
        json.dumps(inspection.to_dict())
        if shown:
            screen = io.StringIO()
            with contextlib.redirect_stdout(screen):
                show(inspection)
            if not screen.getvalue().replace("\n", "").isprintable():
                raise Screen("a control character")
        return "refused layers" if inspection.refused else "ok"

    yield "inspect", "", attempt(inspected)
    opened = attempt(lambda: checkpoints.open(path))
    yield "open", "", opened if isinstance(opened, BaseException) else "ok"
    if isinstance(opened, BaseException):
        return
    layers = []
    for name in opened:
        layer = attempt(partial(opened.__getitem__, name))
        yield "layer", name, layer if isinstance(layer, BaseException) else "ok"
        if isinstance(layer, BaseException):
            continue
        layers.append(layer)
        for part in layer.tensors:
            yield "read", name, attempt(partial(lambda layer, part: touch(layer.tensors[part]), layer, part))
        yield "read", name, attempt(partial(lambda layer: touch(layer.act_scales), layer))
    for name in opened.plain:
        yield "read", name, attempt(partial(lambda name: touch(opened.plain[name]), name))
    small = [layer for layer in layers if layer.nbytes <= _TRANSCODED_NBYTES]
    for layer in source.sample(small, min(len(small), 2)):
        target, lossy = source.choice((*PackedFormat, *AwqWeightLayout)), source.random() < 0.5
        yield "transcode", layer.name, attempt(partial(converted, layer, target, lossy))
        yield "shard", layer.name, attempt(partial(cut, layer, axis, source.randrange(degree), degree))


def converted(layer: PackedLayer, target: PackedFormat | AwqWeightLayout, lossy: bool) -> str:
    return "lossy" if transcode(layer, target, lossy=lossy).loss else "ok"


def cut(layer: PackedLayer, axis: SplitAxis, rank: int, degree: int) -> str:
    part = shard(layer, axis, rank, degree)
    for name in part.tensors:
        touch(part.tensors[name])
    return "ok"


def attempt(step: Any) -> Any:
    """What `step` returns, or the error it ends with."""
    try:
        return step()
    except BaseException as error:
        return error


def touch(array: Any) -> str:
    """Read a tensor: all of it, or the ends of a large one."""
    if array is None:
        return "none"
    flat = array.reshape(-1)
    ends = flat if array.nbytes <= _TRANSCODED_NBYTES else flat[:: max(1, flat.size - 1)]
    ends.tobytes()
    return "ok"


def broken_law(step: str, layer: str, outcome: Any, path: Path) -> str:
    """Which law an outcome breaks; `""` if none."""
    if isinstance(outcome, Hang):
        return "time"
    if isinstance(outcome, Reach):
        return "reach"
    if isinstance(outcome, MemoryError):
        return "memory"
    if isinstance(outcome, Screen):
        return "screen"
    if not isinstance(outcome, BaseException):
        return ""
    if not isinstance(outcome, (CheckpointError, UnsupportedCheckpoint)):
        return "errors"
    if not outcome.file.startswith(str(path)) or outcome.file not in str(outcome):
        return "errors: no file"
    if layer and not outcome.tensor:
        return "errors: no tensor"
    return ""


def kibibytes(key: str) -> int:
    """A line of /proc/self/status."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))


@define
class Report:
    """What the inputs did."""

    kinds: Counter[str] = field(factory=Counter)
    bases: Counter[str] = field(factory=Counter)
    outcomes: dict[str, Counter[str]] = field(factory=dict)
    rules: Counter[str] = field(factory=Counter)
    broken: list[dict[str, Any]] = field(factory=list)
    slowest: dict[str, Any] = field(factory=lambda: {"s": 0.0})
    largest: dict[str, Any] = field(factory=lambda: {"rss_growth_mib": 0.0})

    def add(self, step: str, outcome: Any) -> None:
        name = type(outcome).__name__ if isinstance(outcome, BaseException) else outcome
        self.outcomes.setdefault(step, Counter())[name] += 1
        if isinstance(outcome, (CheckpointError, UnsupportedCheckpoint)):
            self.rules[outcome.rule] += 1


def chosen(number: int, seed: int) -> tuple[random.Random, Base, list[str]]:
    """Input `number` of the run `seed`: its source of choices, base and mutations."""
    source = random.Random(f"{seed}/{number}")
    base = source.choice(BASES)
    count = source.choice((1, 1, 1, 2, 2, 3, 4)) if source.random() > 0.005 else 0
    return source, base, source.choices(_KINDS, k=count)


def run_one(number: int, seed: int, folder: Path, guard: Guard, report: Report, *, loud: bool = False) -> None:
    source, base, kinds = chosen(number, seed)
    report.kinds.update(kinds or ["none"])
    report.bases[str(base)] += 1
    path, root = write(build(source, kinds, base), base, folder)
    if source.random() < 0.02:  # one file of it, or none; a link that the caller names may lead anywhere
        reach = os.path.realpath(root)
        files = [name for name in sorted(os.listdir(path)) if Path(os.path.realpath(path / name)).is_relative_to(reach)]
        path = path / source.choice(("nothing.safetensors", *files, "\0", "x" * 300))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident size starts anew
    before = kibibytes("VmRSS")
    start = time.perf_counter()
    with limited(guard, root):
        results = attempt(lambda: list(exercise(path, source)))
    elapsed = time.perf_counter() - start
    growth = (kibibytes("VmHWM") - before) / 1024
    if isinstance(results, BaseException):
        results = [("between steps", "", results)]
    allowed = path if os.path.isdir(str(path).partition("\0")[0]) else path.parent
    laws = [(broken_law(*result, allowed), *result) for result in results]
    laws += [("memory", "all", "", f"{growth:.0f} MiB")] if growth * 2**20 > RSS_LIMIT else []
    laws += [("time", "all", "", f"{elapsed:.1f} s")] if elapsed > TIME_LIMIT_S else []
    for law, step, _, outcome in laws:
        report.add(step, outcome)
        if loud and isinstance(outcome, BaseException):
            traceback.print_exception(outcome)
        if law:
            what = f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, BaseException) else outcome
            report.broken.append(
                {"input": number, "law": law, "step": step, "what": what[:300], "base": str(base), "kinds": kinds}
            )
    about = {"input": number, "base": str(base), "kinds": kinds}
    if elapsed > report.slowest["s"]:
        report.slowest = {"s": round(elapsed, 4), **about}
    if growth > report.largest["rss_growth_mib"]:
        report.largest = {"rss_growth_mib": round(growth, 1), **about}


def run(numbers: range, seed: int, *, loud: bool = False) -> Report:
    """Inputs `numbers` of the run `seed`."""

    def hang(*_: Any) -> None:
        raise Hang(f"{TIME_LIMIT_S} s")

    guard, report, warm = Guard(), Report(), Report()
    guard.install()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory(dir=_SCRATCH if os.path.isdir(_SCRATCH) else None) as scratch:
        # The valid checkpoints first, without guard: modules, PTX manifests and the registry are loaded on demand.
        for number, base in enumerate(BASES):
            source = random.Random(number)
            path, _ = write(build(source, [], base), base, Path(scratch, f"warm{number}"))
            for step, _, outcome in exercise(path, source):
                if isinstance(outcome, BaseException) and step not in ("transcode", "shard"):
                    raise outcome
                warm.add(step, outcome)
        private = kibibytes("VmData") << 10
        resource.setrlimit(resource.RLIMIT_DATA, (private + _PRIVATE_ROOM, resource.RLIM_INFINITY))
        for number in numbers:
            folder = Path(scratch, str(number))
            run_one(number, seed, folder, guard, report, loud=loud)
            shutil.rmtree(folder)
            if sys.stderr.isatty() and number % 100 == 0:
                print(f"\r{number} of {numbers.stop}, {len(report.broken)} broken laws ", end="", file=sys.stderr)
    return report


def record(report: Report, count: int, seed: int, elapsed: float) -> dict[str, Any]:
    def counted(counter: Counter[str]) -> dict[str, int]:
        return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))

    spoilt = {one["input"] for one in report.broken}
    headline = {"what": "Checkpoints: spoilt folders that broke no law", "value": f"{count - len(spoilt):,}"}
    return {
        "headlines": [{**headline, "unit": f"of {count:,}"}],
        "inputs": count,
        "seed": seed,
        "seconds": round(elapsed, 1),
        "limits": {"time_s": TIME_LIMIT_S, "rss_growth_mib": RSS_LIMIT >> 20, "private_mib": _PRIVATE_ROOM >> 20},
        "broken_laws": report.broken,
        "slowest": report.slowest,
        "largest": report.largest,
        "mutations": counted(report.kinds),
        "bases": counted(report.bases),
        "outcomes": {step: counted(counter) for step, counter in report.outcomes.items()},
        "rules_that_refused": counted(report.rules),
    }


def machine_facts() -> dict[str, Any]:
    """What every result file says of the machine."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import machine
    from host_awq import cpu_name

    return {
        "cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
        "packages": machine.packages("baracuda-py", "numpy"), "commit": machine.commit(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the report; without it only a summary is printed")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input of the run, with tracebacks")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else range(options.only, options.only + 1)
    start = time.perf_counter()
    report = run(numbers, options.seed, loud=options.only is not None)
    made = record(report, len(numbers), options.seed, time.perf_counter() - start)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(machine_facts() | made, indent=1) + "\n")
    print(f"{made['inputs']} inputs in {made['seconds']} s: {len(report.broken)} broken laws; slowest "
          f"{report.slowest['s']} s, largest growth {report.largest['rss_growth_mib']} MiB")  # fmt: skip
    for one in report.broken[:_SHOWN]:
        print(json.dumps(one))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""`baracuda-py tune OP`: measures an op's kernels on this machine's GPU, and writes the table that `select` goes by."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import baracuda_py as bp
from baracuda_py.cli.files import make_folder
from baracuda_py.cli.output import print_json, print_line, print_table, progress, time_text
from baracuda_py.cli.parsing import make_descriptor, parse_device
from baracuda_py.errors import Unsupported
from baracuda_py.tuning import FOLDER, device_of, load_table, slug, write_table
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.tuning import Problem, TuningTable, kernel_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from baracuda_py.bench.results import Results
    from baracuda_py.registry import Op

    Problems = Mapping[str, tuple[Problem, ...]]

__all__ = ["tune"]

_COMMIT = "BARACUDA_PY_COMMIT"  # what the table's origin says, for tables that are committed


def tune(
    op_name: Annotated[str, typer.Argument(metavar="OP", help="Whose kernels; `baracuda-py ops` lists them.")],
    problems: Annotated[
        list[str] | None,
        typer.Option("--problem", metavar="FIELD=VALUE,...", help="To measure; again for more. Default: the op's own."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", file_okay=False, help=f"Where the table goes. Default: ${FOLDER}."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cuda or cuda:N. Default: the GPU.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Times that each kernel is measured.")] = 20,
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", metavar="FILE", exists=True, dir_okay=False,
            help="Measure nothing: take the times of a JSON file of `baracuda-py bench`; again for more.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Measure an op's kernels on the GPU, and keep the times as a tuning table: it corrects the estimates of `select`.

    The table is read from the folder that the environment variable BARACUDA_PY_TUNING names. It is written after every
    problem: whoever stops the command keeps what was measured. Nothing else should use the GPU meanwhile.
    """
    folder = output or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)
    if folder is None:
        raise typer.BadParameter(f"say where the table goes, or set {FOLDER}", param_hint="--output")
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{str(folder)!r} is no folder", param_hint="--output")
    registry = bp.default_registry()
    if sources:
        _take(registry.op(op_name), sources, folder)
        return
    op, resolved = registry.op(op_name), registry.device(parse_device(device))
    descriptors = [make_descriptor(op, _fields(text)) for text in problems] if problems else list(op.tuned())
    if not descriptors:
        raise Unsupported(
            op.name, "there must be problems to measure", rule="problems", got="none", fix="Name some with --problem"
        )
    # Measuring needs NumPy, which the other commands do without.
    from baracuda_py.tuning.measure import Tuner

    tuner = Tuner(registry, resolved, samples)
    for descriptor in descriptors:
        op.check(descriptor)
    path = folder / f"{slug(resolved.name)}.json"
    _kept(path)
    make_folder(folder)  # now, for `select` refuses a folder that is not there
    before = {descriptor: _selected(registry, descriptor, resolved) for descriptor in descriptors}
    measured = []
    with progress(f"measuring {op.name}", len(descriptors)) as advance:
        for descriptor in descriptors:
            measured.append(tuner.measure(descriptor))
            write_table(_with(measured[-1], _kept(path), op, resolved, samples), path)
            advance(1)
    if as_json:
        print_json({"path": path, "problems": [{"problem": one.fields, "us": one.times_us} for one in measured]})
        return
    _show(measured, [before[descriptor] for descriptor in descriptors])
    print_line(f"Wrote {path}", "bold")
    if os.environ.get(FOLDER) != str(folder):
        print_line(f"{FOLDER}={folder} makes `select` go by it.", indent=2)


def _take(op: Op, sources: list[Path], folder: Path) -> None:
    """Add to the table what result files of one GPU hold; of a problem that several hold, the last one's."""
    from baracuda_py.bench.cells import OP
    from baracuda_py.bench.results import Results

    if op is not OP:
        raise Unsupported(op.name, f"`bench` measures {OP.name} only", rule="--from", got=op.name)
    fix = "Give --from what `baracuda-py bench` wrote as OUT.json"
    taken = {source: Results.load(source, fix) for source in sources}
    devices = {source: _gpu_of(results, source) for source, results in taken.items()}
    device = devices[sources[0]]
    if len({(one, one.name) for one in devices.values()}) > 1:  # an H100 and an H200 differ in their names alone
        raise Unsupported(", ".join(map(str, sources)), "they must be of one GPU", rule="--from")
    path = folder / f"{slug(device.name)}.json"
    kept = _kept(path)
    make_folder(folder)
    problems = kept.get(op.name, ())
    for results in taken.values():
        measured = results.problems()
        fields = [one.fields for one in measured]
        problems = (*(one for one in problems if one.fields not in fields), *measured)
    write_table(TuningTable(device, {**kept, op.name: problems}, _origin(taken)), path)
    print_line(f"Wrote {path}", "bold")


def _gpu_of(results: Results, source: Path) -> Device:
    try:
        return device_of(results.environment)
    except (KeyError, ValueError):
        fix = "Measure it with `baracuda-py bench --device cuda`"
        raise Unsupported(str(source), "it must be of a GPU", rule="--from", fix=fix) from None


def _origin(taken: Mapping[Path, Results]) -> dict[str, Any]:
    """Where the times come from: what all files say alike, else what each says, in their order."""
    origin: dict[str, Any] = {}
    for name in ("driver", "commit", "samples"):
        said = [results.environment.get(name) for results in taken.values()]
        if None not in said:
            origin[name] = said[0] if len(set(said)) == 1 else said
    return origin | {"from": [str(source) for source in taken]}


def _fields(text: str) -> dict[str, str | None]:
    pairs = [part.partition("=") for part in re.split(r",(?=[^,=]*=)", text)]  # a value may have commas, as a shape
    if not all(name and equals for name, equals, _ in pairs):
        raise typer.BadParameter(f"{text!r} is not FIELD=VALUE,...", param_hint="--problem")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _selected(registry: Any, descriptor: Any, device: Device) -> str:
    chosen = registry.explain(descriptor, device).chosen
    return "" if chosen is None else kernel_label(chosen.sku)


def _kept(path: Path) -> Problems:
    """What is in the file: read anew for every problem, for another GPU's process may write to it too."""
    return load_table(path).problems if os.path.lexists(path) else {}


def _with(measured: Problem, kept: Problems, op: Op, device: Device, samples: int) -> TuningTable:
    """A table of what is kept, with the problem in place of what it had of it."""
    others = tuple(one for one in kept.get(op.name, ()) if one.fields != measured.fields)
    cuda: Any = bp.default_registry().backend("cuda")
    origin = {"cuda_driver_api": cuda.driver.version, "version": bp.__version__, "samples": samples}
    if commit := os.environ.get(_COMMIT):
        origin["commit"] = commit
    return TuningTable(device, {**kept, op.name: (*others, measured)}, origin)


def _show(measured: list[Problem], before: list[str]) -> None:
    rows = []
    for problem, selected in zip(measured, before, strict=True):
        best = min(problem.times_us, key=problem.times_us.__getitem__)
        over = problem.times_us[selected] / problem.times_us[best] if selected in problem.times_us else 1.0
        words = ", ".join(f"{name} {value}" for name, value in problem.fields.items())
        rows.append((words, best, time_text(problem.times_us[best]), "" if over == 1 else f"{over:.2f} x"))
    print_table(("problem", "fastest", "time", "selected so far"), rows, right=("time",), wrapped="problem")

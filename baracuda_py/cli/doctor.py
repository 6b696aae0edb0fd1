"""`baracuda-py doctor`: what this machine can run, what is missing, and how to get it."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from typing import Annotated, Any

import typer
from attrs import frozen
from rich.text import Text

import baracuda_py as bp
from baracuda_py import sys as kernels
from baracuda_py.cli.output import print_facts, print_json, print_line, working
from baracuda_py.cli.status import ExitCode
from baracuda_py.errors import BaracudaError, Unsupported
from baracuda_py.registry import PLUGIN_GROUPS, Kernel, Registry
from baracuda_py.tuning import FOLDER, known_tables, tables_for
from baracuda_py.vocab.code import Launch, PtxCode
from baracuda_py.vocab.device import HOST, Device, dry_device
from baracuda_py.vocab.enums import ArchSku
from baracuda_py.vocab.tuning import TuningTable

__all__ = ["Finding", "doctor", "findings"]

_DISTRIBUTION = "baracuda-py"
_NO_GPU_ARCH = "sm_90"  # stands in for a GPU when library kernels are asked what they lack
_STYLES = {"ok": "green", "missing": "yellow", "broken": "red"}


@frozen
class Finding:
    """One line of the report.

    Attributes:
        section: heading it stands under.
        name: what was looked at.
        state: `"ok"`, `"missing"` (something optional is not there) or `"broken"`.
        detail: version, device, or what is wrong.
        fix: how to get it, or mend it.
    """

    section: str
    name: str
    state: str
    detail: str
    fix: str = ""


def doctor(
    require: Annotated[
        str | None, typer.Option("--require", metavar="gpu", help="gpu: exit with 1 if no GPU can be used.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report on Python, driver, GPUs, kernels, libraries, tuning and plug-ins: what is missing and how to get it.

    Exits with 0 when the host backend computes right, whatever else is missing.
    """
    if require not in (None, "gpu"):
        raise typer.BadParameter(f"{require!r} is not gpu", param_hint="--require")
    registry = bp.default_registry()
    with working("looking around"):
        found = list(findings(registry))
    host_works = all(one.state == "ok" for one in found if one.section == "host")
    has_gpu = any(one.state == "ok" for one in found if one.section == "gpu" and one.name.startswith("cuda:"))
    if as_json:
        print_json({"host_works": host_works, "has_gpu": has_gpu, "findings": found})
    else:
        _show(found)
    if not host_works or (require == "gpu" and not has_gpu):
        raise typer.Exit(ExitCode.FAILED)


def findings(registry: Registry[Any]) -> Iterator[Finding]:
    """Everything, section by section."""
    yield Finding("python", "python", "ok", f"{platform.python_version()}, {platform.platform()}")
    yield Finding("python", "baracuda_py", "ok", bp.__version__)
    yield from _host()
    devices = []
    for found, device in _gpus(registry):
        yield found
        devices += [device] if device is not None else []
    yield from _ptx(registry, devices)
    yield from _libraries()
    yield from _kernels(registry, devices)
    yield from _tuning(devices)
    yield from _plugins(registry)


def _host() -> Iterator[Finding]:
    """Compute a small layer of the demo on the host."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from baracuda_py.checkpoints.checkpoint import open_checkpoint
    from baracuda_py.cli.demo import LAYERS, write_checkpoint
    from baracuda_py.cli.run import run_layer

    try:
        with TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), LAYERS[:1])
            outcome = run_layer(open_checkpoint(folder).layer(LAYERS[0].name), 1, device="host", repeat=1)
    except Exception as error:  # whatever it is, the report is the place to say it
        yield Finding("host", "host backend", "broken", f"{type(error).__name__}: {error}", "Reinstall baracuda_py")
        return
    detail = f"an AWQ layer came out with a relative error of {outcome.relative_error:.1e}"
    state = "ok" if outcome.passed else "broken"
    yield Finding("host", "host backend", state, detail, "" if outcome.passed else "Reinstall NumPy and its BLAS")


def _gpus(registry: Registry[Any]) -> Iterator[tuple[Finding, Device | None]]:
    """The driver and each GPU."""
    backend: Any = registry.backend("cuda")
    problem: BaracudaError | None = backend.problem()
    if problem is not None:
        yield Finding("gpu", "driver", "missing", _told(problem), problem.fix), None
        return
    number = backend.driver.version
    yield Finding("gpu", "driver", "ok", f"CUDA {number // 1000}.{number % 1000 // 10}"), None
    for ordinal in range(backend.contexts.count()):
        try:
            device = backend.device(ordinal)
        except BaracudaError as error:
            yield Finding("gpu", f"cuda:{ordinal}", "broken", _told(error), error.fix), None
        else:
            capability = "sm_{}{}".format(*device.capability)
            detail = f"{device.name}, {capability}, {device.sm_count} multiprocessors"
            yield Finding("gpu", f"cuda:{ordinal}", "ok", detail), device


def _ptx(registry: Registry[Any], devices: list[Device]) -> Iterator[Finding]:
    """Each committed PTX module: intact, and loaded on every GPU that it is for."""
    modules = kernels.modules()
    if not modules:
        yield Finding("ptx", "modules", "broken", "no PTX module is installed", "Reinstall baracuda_py")
    for module in modules:
        name = f"{module.name} ({module.arch})"
        try:
            nbytes = len(module.ptx)
            loaded = [str(device.ordinal) for device in devices if _loads(registry, module, device)]
        except (BaracudaError, ValueError, OSError) as error:
            told = _told(error) if isinstance(error, BaracudaError) else str(error)
            yield Finding("ptx", name, "broken", told, getattr(error, "fix", "") or "Reinstall baracuda_py")
            continue
        where = f"loads on GPU {', '.join(loaded)}" if loaded else "not for a GPU of this machine" if devices else ""
        count = len(module.entries)
        parts = [f"{count} kernel{'s' if count != 1 else ''}", f"{nbytes:,} bytes, intact", where]
        yield Finding("ptx", name, "ok", ", ".join(filter(None, parts)))


def _loads(registry: Registry[Any], module: kernels.PtxModule, device: Device) -> bool:
    """Load every kernel of `module` on `device`; False if it is for other GPUs. Raises what loading raises."""
    assert device.capability is not None
    if not module.loads_on(device.capability):
        return False
    backend: Any = registry.backend("cuda")
    code = PtxCode(module.name, ArchSku[module.arch.upper()], lambda _descriptor, _device: ())
    context = backend.context(device)
    with context.current():
        for entry in module.entries:
            backend.modules.function(context, code, Launch(entry, (1, 1, 1), (1, 1, 1), ()), "doctor")
    return True


def _libraries() -> Iterator[Finding]:
    """Everything that the package's own metadata names, once, with the first extra that brings it."""
    try:
        lines = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        yield Finding(
            "libraries", _DISTRIBUTION, "missing", "no metadata: run from a source tree", "Run: pip install ."
        )
        return
    named: set[str] = set()
    for line in lines:
        match = re.match(r"(?P<name>[\w.-]+)[^;]*(?:;.*extra\s*==\s*['\"](?P<extra>\w+)['\"])?", line)
        assert match is not None
        name, extra = match["name"], match["extra"]
        if extra == "test" or name in named:
            continue
        named.add(name)
        try:
            yield Finding("libraries", name, "ok", version(name))
        except PackageNotFoundError:
            fix = f"Run: pip install '{_DISTRIBUTION}{f'[{extra}]' if extra else ''}'"
            yield Finding("libraries", name, "missing" if extra else "broken", "not installed", fix)


def _kernels(registry: Registry[Any], devices: list[Device]) -> Iterator[Finding]:
    """Kernels that cannot run for want of something, by what they want."""
    wanting: dict[tuple[str, str], list[str]] = {}
    for op in registry.ops():
        for kernel in op.kernels:
            for device in (HOST, *(devices or [dry_device(_NO_GPU_ARCH)])):
                if not device.loads(kernel.sku.arch):
                    continue
                missing = _missing(registry, kernel, device)
                if missing is not None:
                    wanting.setdefault((_told(missing), missing.fix), []).append(op.name)
    for (told, fix), names in wanting.items():
        ops = ", ".join(sorted(set(names)))
        count = f"{len(names)} kernel{'s' if len(names) != 1 else ''}"
        yield Finding("kernels", ops, "missing", f"{count} cannot run: {told}", fix)


def _missing(registry: Registry[Any], kernel: Kernel, device: Device) -> BaracudaError | None:
    try:
        backend = registry.backend(kernel.code.executor)
    except Unsupported as error:
        return error
    return backend.missing(kernel.code, device)


def _tuning(devices: list[Device]) -> Iterator[Finding]:
    """The tuning tables that each GPU goes by; without a GPU, those that there are."""
    try:
        tables = known_tables()
    except BaracudaError as error:
        yield Finding("tuning", "tables", "broken", _told(error), error.fix)
        return
    if not devices:
        yield Finding("tuning", "tables", "ok", _listed(tables))
    for device in devices:
        name, found = f"cuda:{device.ordinal}", tables_for(device)
        if found:
            yield Finding("tuning", name, "ok", _listed(found))
        else:
            assert device.capability is not None
            detail = "no measured times of a GPU of sm_{}{}".format(*device.capability)
            fix = f"Run: baracuda-py tune OP --output DIR, and set {FOLDER}=DIR"
            yield Finding("tuning", name, "missing", detail, fix)


def _listed(tables: tuple[TuningTable, ...]) -> str:
    return ", ".join(f"{table.where} ({table.device.name})" for table in tables)


def _plugins(registry: Registry[Any]) -> Iterator[Finding]:
    errors = registry.plugin_errors
    for group in PLUGIN_GROUPS:
        for point in entry_points(group=group):
            error = errors.get(f"{group}:{point.name}")
            if error is None:
                yield Finding("plug-ins", point.name, "ok", f"{point.value} ({group})")
            else:
                detail = f"{point.value}: {type(error).__name__}: {error}"
                yield Finding("plug-ins", point.name, "broken", detail, "Update or uninstall the plug-in")


def _told(error: BaracudaError) -> str:
    """The message without its fix, which has a place of its own."""
    return str(error).removesuffix(f" {error.fix.rstrip('.')}.") if error.fix else str(error)


def _show(found: list[Finding]) -> None:
    for section in dict.fromkeys(one.section for one in found):
        print_line(section, "bold")
        here = [one for one in found if one.section == section]
        facts: list[tuple[str, str | Text]] = []
        for one in here:
            state = Text("" if one.state == "ok" else f"{one.state}: ", _STYLES[one.state])
            facts.append((one.name, state + Text(one.detail)))
            facts += [("", Text(one.fix, "cyan"))] if one.fix else []
        print_facts(facts)

"""`baracuda-py explain OP`: which kernel would serve a problem, and why the others would not.

The options are made from the fields of each op's descriptor, so that a new op has its command by being registered.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import attrs
import typer
from rich.markup import escape
from rich.text import Text
from typer.core import TyperGroup

import baracuda_py as bp
from baracuda_py.cli.output import bytes_text, output_console, print_facts, print_json, print_line, time_text
from baracuda_py.cli.parsing import (
    DEVICE_HELP,
    DescriptorOption,
    descriptor_options,
    make_descriptor,
    parse_device,
    parse_enum,
    typed,
)
from baracuda_py.cli.skus import promise
from baracuda_py.cli.status import exit_code, reason
from baracuda_py.errors import BaracudaError, NoKernel
from baracuda_py.registry import Candidate, Explanation, Op
from baracuda_py.vocab.code import Launch, launches_of
from baracuda_py.vocab.enums import BackendKind
from baracuda_py.vocab.preference import PlanPreference

__all__ = ["ExplainGroup"]

_OF_THE_SKU = ("element", "layout", "epilogue", "kind")  # a kernel serves one of each


class ExplainGroup(TyperGroup):
    """A group with a command for each registered op; the registry is made when one is asked for."""

    def _fill(self) -> None:
        if not self.commands:
            for op in bp.default_registry().ops():
                self.commands[op.name] = _command(op)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the ops."""
        self._fill()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of an op; None if there is no such op."""
        self._fill()
        return self.commands.get(cmd_name)


def _command(op: Op) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(op.name, help=escape(op.doc.partition("\n")[0]), epilog=_example(op))(_function(op))
    return typer.main.get_command(app)


def _example(op: Op) -> str:
    """A command line for one of the op's own examples."""
    example = next((one for one in op.examples if not op.is_empty(one)), None)
    if example is None:
        return ""
    options = [option for option in descriptor_options(op) if option.required]
    return f"Example: baracuda-py explain {op.name} " + " ".join(
        f"{option.option} {typed(getattr(example, option.field))}" for option in options
    )


def _function(op: Op) -> Callable[..., None]:
    """The command's function: its signature has an option for each descriptor field."""
    options = list(descriptor_options(op))

    def command(**values: Any) -> None:
        texts = {option.field: values.pop(option.field) for option in options}
        _explain(op, make_descriptor(op, texts), **values)

    parameters = [*(_field_parameter(op, option) for option in options), *_SHARED]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _field_parameter(op: Op, option: DescriptorOption) -> inspect.Parameter:
    info = typer.Option(
        option.option, metavar=option.field.upper(), help=escape(option.help), rich_help_panel=op.descriptor.__name__
    )
    kind, default = (str, inspect.Parameter.empty) if option.required else (str | None, option.default or None)
    return inspect.Parameter(
        option.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _shared(
    name: str, kind: Any, default: Any, option: str, metavar: str, text: str, least: int | None = None
) -> inspect.Parameter:
    info = typer.Option(option, metavar=metavar or None, help=text, min=least)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


_SHARED = (
    _shared("device", str | None, None, "--device", "DEVICE", DEVICE_HELP),
    _shared("require", str | None, None, "--require", "TOKEN", "Guarantee to cover, e.g. any-any-any-SdB."),
    _shared("prefer_backend", str | None, None, "--prefer-backend", "NAME", "Take its kernels where one serves."),
    _shared("max_workspace_bytes", int | None, None, "--max-workspace-bytes", "N", "Refuse kernels that need more.", 0),
    _shared("sku", str | None, None, "--sku", "TOKEN", "Only this kernel may serve."),
    _shared("every", bool, False, "--all", "", "List each refused kernel."),
    _shared("as_json", bool, False, "--json", "", "Print JSON."),
)


def _explain(
    op: Op,
    descriptor: Any,
    *,
    device: str | None,
    require: str | None,
    prefer_backend: str | None,
    max_workspace_bytes: int | None,
    sku: str | None,
    every: bool,
    as_json: bool,
) -> None:
    registry = bp.default_registry()
    preference = PlanPreference(
        max_workspace_bytes=max_workspace_bytes,
        prefer_backend=None if prefer_backend is None else parse_enum(BackendKind, prefer_backend, "--prefer-backend"),
        require=promise(require, option="--require"),
        sku=None if sku is None else registry.kernel(sku).sku,
    )
    explanation = registry.explain(descriptor, parse_device(device), preference)
    if as_json:
        print_json(_json(explanation))
    else:
        _show(explanation, every)
    if explanation.error is not None:
        raise typer.Exit(exit_code(explanation.error))


def _workspace(explanation: Explanation, candidate: Candidate) -> int:
    empty = explanation.op.is_empty(explanation.descriptor)
    return 0 if empty else candidate.kernel.workspace(explanation.descriptor, explanation.device)


def _launches(explanation: Explanation) -> tuple[Launch, ...]:
    kernel = explanation.chosen
    if kernel is None or explanation.op.is_empty(explanation.descriptor):
        return ()
    return launches_of(kernel.code, explanation.descriptor, explanation.device)


def _show(explanation: Explanation, every: bool) -> None:
    print_line(f"{explanation.op.name} on {explanation.device}", "bold")
    print_line(_fields(explanation.descriptor), indent=2)
    print_line()
    if explanation.error is not None and not isinstance(explanation.error, NoKernel) and not explanation.candidates:
        print_line(f"Refused: {reason(explanation.error)}", "red")
        return
    serving = [one for one in explanation.candidates if one.refusal is None]
    refused = [(one, one.refusal) for one in explanation.candidates if one.refusal is not None]
    print_line(f"Serving ({len(serving)}){', by estimate' if len(serving) > 1 else ''}", "bold")
    for candidate in serving:
        _show_serving(explanation, candidate)
    if not serving:
        print_line("none", "red", indent=2)
    if refused:
        print_line()
        print_line(f"Refused ({len(refused)})", "bold")
        (_list_refused if every else _group_refused)(refused)


def _fields(descriptor: Any) -> str:
    values = attrs.asdict(descriptor, recurse=False)
    return ", ".join(f"{name} = {typed(value)}" for name, value in values.items())


def _show_serving(explanation: Explanation, candidate: Candidate) -> None:
    chosen = candidate.kernel is explanation.chosen
    assert candidate.cost_us is not None
    print_line(candidate.sku.token, "green" if chosen else "", indent=2, mark="* " if chosen else "")
    workspace = bytes_text(_workspace(explanation, candidate))
    basis = " by measurements" if candidate.calibrated else ""
    details = [f"~{time_text(candidate.cost_us)}{basis}", f"workspace {workspace}", candidate.kernel.doc]
    print_line("; ".join(filter(None, details)), "dim", indent=4)
    for launch in _launches(explanation) if chosen else ():
        geometry = f"grid {launch.grid}, block {launch.block}, {launch.shared_bytes} shared bytes"
        print_line(f"launches {launch.entry}: {geometry}", "dim", indent=4)


def _list_refused(refused: Iterable[tuple[Candidate, BaracudaError]]) -> None:
    for candidate, error in refused:
        print_line(candidate.sku.token, indent=2, mark="- ")
        print_line(reason(error), "dim", indent=4)


def _group_refused(refused: Iterable[tuple[Candidate, BaracudaError]]) -> None:
    """One entry a reason; kernels that are made for another element, layout, epilogue or kind share the last."""
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    others: defaultdict[str, int] = defaultdict(int)
    for candidate, error in refused:
        subject = error.rule.partition(" ")[0]
        if subject in _OF_THE_SKU and hasattr(candidate.sku, subject):
            others[f"{subject} {getattr(candidate.sku, subject).name.lower()}"] += 1
        else:
            groups[reason(error)].append(candidate)
    entries: list[tuple[str, str | Text]] = []
    for text, candidates in groups.items():
        variants = sorted({one.sku.variant or one.sku.backend.name.lower() for one in candidates})
        entries.append((str(len(candidates)), f"{text} [{', '.join(variants)}]"))
    if others:
        made_for = ", ".join(f"{what} ({count})" for what, count in sorted(others.items()))
        entries.append((str(sum(others.values())), f"made for another {made_for}"))
    print_facts(entries)
    if output_console().is_terminal:
        print_line("--all lists each kernel.", "dim")


def _json(explanation: Explanation) -> dict[str, Any]:
    return {
        "op": explanation.op.name,
        "descriptor": attrs.asdict(explanation.descriptor, recurse=False),
        "device": str(explanation.device),
        "chosen": None if explanation.chosen is None else explanation.chosen.sku.token,
        "error": None if explanation.error is None else _error_json(explanation.error),
        "launches": [attrs.asdict(launch, recurse=False) for launch in _launches(explanation)],
        "candidates": [
            {
                "sku": one.sku.token,
                "estimate_us": one.cost_us,
                "calibrated": one.calibrated,
                "workspace_bytes": None if one.refusal is not None else _workspace(explanation, one),
                "refusal": None if one.refusal is None else _error_json(one.refusal),
            }
            for one in explanation.candidates
        ],
    }


def _error_json(error: BaracudaError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "where": error.where,
        "rule": error.rule,
        "must": error.must,
        "value": error.value,
        "why": error.why,
        "fix": error.fix,
        "message": str(error).splitlines()[0],
    }

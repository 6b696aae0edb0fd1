"""Text of the command line to the package's values: enum members, devices, and the fields of any descriptor."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import typer
from attrs import frozen

from baracuda_py.registry import Op
from baracuda_py.vocab.rules import OneOf

__all__ = [
    "DEVICE_HELP",
    "RUN_DEVICE_HELP",
    "DescriptorOption",
    "descriptor_options",
    "make_descriptor",
    "parse_device",
    "parse_enum",
    "parse_size",
    "typed",
]

E = TypeVar("E", bound=Enum)
DEVICE_HELP = "host, cuda, cuda:N, or an architecture such as sm_90a for a dry run. Default: the GPU if there is one."
RUN_DEVICE_HELP = "host, cuda or cuda:N. Default: the GPU if there is one."
_DEVICE = re.compile(r"host|cpu|cuda(:\d+)?|\d+|sm_?\d+[af]?")
_NONE = "none"
_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30,
    "tib": 2**40,
}  # fmt: skip


def parse_device(text: str | None) -> str | int | None:
    """What `bp.select` takes as a device."""
    if text is None:
        return None
    if not _DEVICE.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is none of: {DEVICE_HELP.partition(' Default')[0]}", param_hint="--device")
    return int(text) if text.isdigit() else text


def parse_enum(enum: type[E], text: str, option: str) -> E:
    """The member called `text`, whatever its case; `-` stands for `_`."""
    try:
        return enum[text.upper().replace("-", "_")]
    except KeyError:
        known = ", ".join(name.lower() for name in enum.__members__)
        raise typer.BadParameter(f"{text!r} is none of {known}", param_hint=option) from None


def parse_size(text: str, option: str) -> int:
    """Bytes of `"5GB"`, `"500MiB"`, `"4096"`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise typer.BadParameter(f"{text!r} is no size such as 5GB or 500MiB", param_hint=option)
    return max(1, int(float(match[1]) * _UNITS[match[2]]))


@frozen
class DescriptorOption:
    """One field of a descriptor as an option.

    Attributes:
        field: its name.
        option: e.g. `"--group-size"`.
        type: its annotation.
        required: whether it has no default.
        default: as it is typed; empty when required.
        help: what the descriptor's docstring says of it, and the rules about it.
    """

    field: str
    option: str
    type: Any
    required: bool
    default: str
    help: str


def descriptor_options(op: Op) -> Iterator[DescriptorOption]:
    """An option for each field of the op's descriptor, in order."""
    types = get_type_hints(op.descriptor)
    docs = _field_docs(op.doc)
    for attribute in attrs.fields(op.descriptor):
        if not attribute.init:
            continue
        required = attribute.default is attrs.NOTHING
        default = "" if required or isinstance(attribute.default, attrs.Factory) else typed(attribute.default)  # type: ignore[arg-type]
        kind = types.get(attribute.name, Any)
        option = "--" + attribute.name.replace("_", "-")
        text = f"{docs.get(attribute.name, '')} {_allowed(op, attribute.name, kind)}".strip()
        yield DescriptorOption(attribute.name, option, kind, required, default, text)


def make_descriptor(op: Op, texts: dict[str, str | None]) -> Any:
    """The descriptor that the options describe; those not given (None) keep their defaults."""
    options = {option.field: option for option in descriptor_options(op)}
    if unknown := [name for name in texts if name not in options]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of the fields {', '.join(options)}")
    if missing := [name for name, option in options.items() if option.required and texts.get(name) is None]:
        raise typer.BadParameter(f"{' and '.join(missing)} must be given")
    values = {
        name: _parse(options[name].type, text, options[name].option)
        for name, text in texts.items()
        if text is not None and text != options[name].default
    }
    try:
        return op.descriptor(**values)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def typed(value: Any) -> str:
    """A descriptor field's value as one types it."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(typed, value))
    return _NONE if value is None else str(value)


def _field_docs(doc: str) -> dict[str, str]:
    """What the docstring's `Attributes:` section says of each field; `ic, oc: ...` speaks of both."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in doc.partition("Attributes:\n")[2].splitlines():
        entry = re.fullmatch(r" {4}(?P<names>\w+(?:, \w+)*): (?P<text>.*)", line)
        if entry is not None:
            names = entry["names"].split(", ")
            found |= dict.fromkeys(names, entry["text"])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return {name: text[:1].upper() + text[1:] for name, text in found.items()}


def _allowed(op: Op, name: str, kind: Any) -> str:
    """The rules about a field, in parentheses."""
    rules = [rule for rule in op.rules if rule.subject == name]
    choices = [", ".join(typed(choice) for choice in rule.choices) for rule in rules if isinstance(rule, OneOf)]
    others = [rule.name for rule in rules if not isinstance(rule, OneOf)]
    enum = next((one for one in _alternatives(kind) if isinstance(one, type) and issubclass(one, Enum)), None)
    if enum is not None and not choices:
        choices = [", ".join(member.lower() for member in enum.__members__)]
    if get_origin(kind) is tuple:
        others.insert(0, "such as 2,3,4")
    parts = [*choices, *others]
    return f"({'; '.join(parts)})" if parts else ""


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _parse(kind: Any, text: str, option: str) -> Any:
    alternatives = _alternatives(kind)
    if NoneType in alternatives and text.lower() == _NONE:
        return None
    kind = next(one for one in alternatives if one is not NoneType)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return parse_enum(kind, text, option)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(_parse(inner, part, option) for part in text.strip("()").split(",") if part.strip())
    try:
        if kind in (int, float):
            return kind(text)
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        name = getattr(kind, "__name__", str(kind))
        raise typer.BadParameter(f"{text!r} is no {name}", param_hint=option) from None

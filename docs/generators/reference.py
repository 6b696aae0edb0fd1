"""The reference: a page for each module that has public names (`__all__`), from signatures and docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from functools import cached_property
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import attrs

import baracuda_py
from baracuda_py.registry import Op
from generators.markdown import NOTICE, docstring, slug, table

__all__ = ["module_page", "pages"]

_ROOT_NAMES = ("select", "explain", "default_registry")
_INTERNAL = re.compile(r"cli\b|(alike|operands)$|sys\.|vocab\.dlpack$|backends\.\w+\.|.*\b_")


def pages() -> dict[str, str]:
    """Content by file name."""
    modules = sorted(_public_modules(), key=lambda module: module.__name__)
    made = {f"{_short(module)}.md": _module(module) for module in modules}
    core = [module for module in modules if not _short(module).startswith("ops.")]
    rows = [(f"[{module.__name__}]({_short(module)}.md)", _summary(module)) for module in core]
    made["README.md"] = (
        f"{NOTICE}\n# Reference\n\n"
        "Public names of the core modules can be taken from `baracuda_py` itself: `bp.PlanPreference`, `bp.select`.\n"
        "The ops have a page each, linked from the [ops table](../ops-table.md).\n\n"
        f"{table(('module', 'what it is'), rows)}\n"
        f"## baracuda_py\n\n{docstring(inspect.getdoc(baracuda_py) or '')}\n"
        + "\n".join(_function(name, getattr(baracuda_py, name), "###") for name in _ROOT_NAMES)
    )
    return made


def module_page(module_name: str) -> str:
    """File name of a module's page."""
    return f"{module_name.removeprefix('baracuda_py.')}.md"


def _absent(name: str) -> None:
    """Called for a package that cannot be imported: right for a framework that is not there."""
    if not name.startswith("baracuda_py.interop."):
        raise  # the error that is being handled


def _public_modules() -> Iterator[ModuleType]:
    for found in walk_packages(baracuda_py.__path__, "baracuda_py.", _absent):
        name = found.name.removeprefix("baracuda_py.")
        if _INTERNAL.match(name) or name.startswith("interop."):  # which need their framework: see their guides
            continue
        module = import_module(found.name)
        if _has_page(module):
            yield module


def _has_page(module: ModuleType) -> bool:
    return hasattr(module, "OP") if _short(module).startswith("ops.") else hasattr(module, "__all__")


def _short(module: ModuleType) -> str:
    return module.__name__.removeprefix("baracuda_py.")


def _summary(module: ModuleType) -> str:
    paragraph = (inspect.getdoc(module) or "").split("\n\n")[0]
    return paragraph.split("\n    ")[0].strip()


def _module(module: ModuleType) -> str:
    parts = [f"{NOTICE}\n# {module.__name__}\n\n{docstring(inspect.getdoc(module) or '')}"]
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, Op):
            parts[0] += f"\nIts rules and kernels: [{value.name}](../ops-table.md#{slug(value.name)}).\n"
        elif inspect.isclass(value) and issubclass(value, Enum):
            parts.append(_enum(name, value))
        elif inspect.isclass(value):
            parts.append(_class(name, value))
        elif inspect.isroutine(value) or hasattr(value, "__wrapped__"):
            parts.append(_function(name, value, "##"))
        else:
            parts.append(f"## {name}\n\n{_value(name, value, module)}")
    return "\n".join(parts)


def _value(name: str, value: Any, module: ModuleType) -> str:
    if isinstance(value, str | int):
        return f"`{value!r}`\n"
    if type(value).__module__ == "typing" or "UnionType" in type(value).__name__ or "Alias" in type(value).__name__:
        return f"`{_as_written(name, module)}`\n"
    return f"A `{type(value).__name__}`.\n"


def _as_written(name: str, module: ModuleType) -> str:
    """The right side of the module's assignment to `name`: an alias prints differently from one NumPy to the next."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return ast.unparse(node.value)
    raise LookupError(f"{module.__name__} does not assign {name}")


def _enum(name: str, enum: type[Enum]) -> str:
    comments = dict(re.findall(r"^\s+(\w+) = [^#\n]+#\s*(.+)$", inspect.getsource(enum), re.MULTILINE))
    rows = [(f"`{member.name}`", f"`{member.value!r}`", comments.get(member.name, "")) for member in enum]
    doc = docstring(inspect.getdoc(enum) or "")
    if not comments:
        return f"## {name}\n\n{doc}\n{table(('member', 'value'), (row[:2] for row in rows))}"
    return f"## {name}\n\n{doc}\n{table(('member', 'value', ''), rows)}"


def _class(name: str, cls: type) -> str:
    ours = [base for base in cls.__mro__[1:] if base.__module__.startswith("baracuda_py")]
    bases = [base for base in ours if base in cls.__bases__ and _has_page(import_module(base.__module__))]
    members = {**vars(cls)}
    for base in ours:
        if not _has_page(import_module(base.__module__)):
            members |= {member: value for member, value in vars(base).items() if member not in members}
    lines = [f"## {name}\n"]
    call = _constructor(name, cls)
    if call:
        lines.append(f"```python\n{call}\n```\n")
    if bases:
        lines.append(f"A {', '.join(f'`{base.__name__}`' for base in bases)}.\n")
    lines.append(docstring(inspect.cleandoc(vars(cls).get("__doc__") or "")))
    if hasattr(cls, "__baracuda_specs__"):
        lines.append(_tensors(cls))
    builders = [f"`{member}`" for member in vars(cls) if member.startswith("with_") and attrs.has(cls)]
    if builders:
        lines.append(f"Copies with one field changed: {', '.join(builders)}.\n")
    for member, value in members.items():
        if member.startswith("_") or f"`{member}`" in builders:
            continue
        if isinstance(value, property | cached_property):
            function = value.fget if isinstance(value, property) else value.func
            returns = f" -> {_annotation(function.__annotations__.get('return', ''))}"
            lines.append(f"### {name}.{member}\n\n`{member}{returns}` (property)\n")
            lines.append(docstring(inspect.getdoc(function) or ""))
        elif inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
            lines.append(_function(f"{name}.{member}", getattr(cls, member), "###"))
    return "\n".join(lines)


def _tensors(cls: Any) -> str:
    rows = []
    for spec in cls.__baracuda_specs__:
        if isinstance(spec.element, str):
            element = f"`{spec.element}`"
        else:
            kinds = spec.element if isinstance(spec.element, tuple) else (spec.element,)
            element = " or ".join(kind.name for kind in kinds)
        whole = not isinstance(spec.shape, tuple)
        shape = str(spec.shape) if whole else "(" + ", ".join(map(str, spec.shape)) + ")"
        needed = f"if `{spec.needed}`" if spec.needed else "always"
        rows.append((f"`{spec.name}`", spec.role, element, f"`{shape}`", spec.strides, needed, spec.doc))
    return table(("tensor", "role", "element", "shape", "strides", "given", ""), rows)


def _constructor(name: str, cls: type) -> str:
    if attrs.has(cls):
        fields = [field for field in attrs.fields(cls) if field.init]
        parts = [_parameter(f.alias or f.name, f.type, f.default) for f in fields]
        keyword_only = next((index for index, field in enumerate(fields) if field.kw_only), None)
        if keyword_only is not None:
            parts.insert(keyword_only, "*")
        return _call(name, parts)
    if not inspect.isfunction(cls.__init__) or getattr(cls, "_is_protocol", False):
        return ""
    return _signature(name, cls)


def _parameter(name: str, annotation: Any, default: Any) -> str:
    text = f"{name}: {_annotation(annotation)}" if annotation not in (None, inspect.Parameter.empty) else name
    if default in (attrs.NOTHING, inspect.Parameter.empty):
        return text
    return f"{text} = {_default(default)}"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return f"{value.factory.__name__}()"
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return repr(value)


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parts: list[str] = []
    kinds = inspect.Parameter
    star = False
    for parameter in signature.parameters.values():
        if parameter.kind is kinds.VAR_POSITIONAL:
            star = True
        elif parameter.kind is kinds.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        prefix = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        parts.append(prefix + _parameter(parameter.name, parameter.annotation, parameter.default))
    returns = signature.return_annotation
    call = _call(name, parts)
    if inspect.isclass(function) or returns is inspect.Signature.empty:
        return call
    return f"{call} -> {_annotation(returns)}"


def _call(name: str, parts: list[str]) -> str:
    flat = f"{name}({', '.join(parts)})"
    if len(flat) <= 100:
        return flat
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _function(name: str, function: Any, level: str) -> str:
    text = docstring(inspect.getdoc(function) or "")
    return f"{level} {name}\n\n```python\n{_signature(name, function)}\n```\n\n{text}"

"""The ops table: every op with its kernels and rules, from the registry of the built-in ops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from baracuda_py.ops import builtin_ops
from baracuda_py.registry import Kernel, Op
from baracuda_py.vocab.rules import Rule
from baracuda_py.vocab.sku import PrecisionGuarantee
from generators.markdown import NOTICE, slug, table
from generators.reference import module_page

__all__ = ["page"]


def page() -> str:
    """The whole page."""
    ops = sorted(builtin_ops(), key=lambda op: op.name)
    rows = [(f"[{op.name}](#{slug(op.name)})", *_summary(group)) for op in ops for group in _groups(op.kernels)]
    return "\n".join(
        [
            f"{NOTICE}\n# Ops\n",
            "A line stands for the kernels that differ only in element, layout and epilogue; each of them has a SKU\n"
            "of its own, which `baracuda-py skus` lists. `sm80` kernels run on every later GPU too.\n",
            table(("op", "backend", "arch", "variant", "elements", "layouts", "epilogues", "guarantee"), rows),
            *(_op(op) for op in ops),
        ]
    )


def _groups(kernels: Iterable[Kernel], *, by_guarantee: bool = True) -> list[list[Kernel]]:
    """Kernels that differ only in element, layout, epilogue, kind and, if asked, guarantee; in a stable order."""
    groups: dict[Any, list[Kernel]] = {}
    for kernel in sorted(kernels, key=lambda kernel: kernel.sku):
        sku = kernel.sku
        told_apart = (sku.backend, sku.arch, sku.variant, kernel.rules, kernel.doc, *sorted(kernel.alignment.items()))
        guarantee = sku.precision_guarantee if by_guarantee else None
        groups.setdefault((guarantee, told_apart), []).append(kernel)
    return sorted(groups.values(), key=lambda group: (group[0].sku.arch, group[0].sku.variant, group[0].sku))


def _names(kernels: list[Kernel], attribute: str) -> str:
    members = {getattr(kernel.sku, attribute) for kernel in kernels}
    return ", ".join(member.name.lower() for member in sorted(members))


def _summary(group: list[Kernel]) -> tuple[str, ...]:
    sku = group[0].sku
    return (
        sku.backend.name.lower(),
        sku.arch.name.lower(),
        sku.variant,
        _names(group, "element"),
        _names(group, "layout"),
        _names(group, "epilogue"),
        f"`{sku.precision_guarantee}`",
    )


def _op(op: Op) -> str:
    reference = module_page(op.descriptor.__module__)
    kinds = ", ".join(kind.name for kind in op.kinds)
    named = op.descriptor.__name__
    parts = [
        f"## {op.name}\n",
        f"{op.doc.splitlines()[0]} `{op.category.name}`: {kinds}. [`{named}`](reference/{reference}#{slug(named)})\n",
        "Every descriptor must satisfy, checked in this order:\n",
        _rules(op.rules),
    ]
    if op.contract:
        plan = f"{named.removesuffix('Descriptor')}Plan"
        parts += [f"`{plan}.select` checks instead, in this order:\n", _rules(op.contract)]
    heading = ""
    for group in _groups(op.kernels, by_guarantee=False):
        sku = group[0].sku
        words = dict.fromkeys((sku.backend.name.lower(), sku.arch.name.lower(), sku.variant))  # "host host" is "host"
        if heading != (heading := " ".join(filter(None, words))):
            parts.append(f"### {heading}\n")
        parts += _kernels(group)
    return "\n".join(parts)


def _rules(rules: Iterable[Rule]) -> str:
    rows = [(f"`{rule.name}`", rule.error.__name__, rule.why, rule.fix) for rule in rules]
    return table(("rule", "error", "why", "what to do"), rows)


def _kernels(group: list[Kernel]) -> list[str]:
    kernel = group[0]
    doc = f"{kernel.doc[:1].upper()}{kernel.doc[1:]}. " if kernel.doc else ""
    parts = [f"{doc}Layouts {_names(group, 'layout')}; epilogues {_names(group, 'epilogue')}.\n"]
    promises: dict[PrecisionGuarantee, list[Kernel]] = {}
    for one in group:
        promises.setdefault(one.sku.precision_guarantee, []).append(one)
    parts.append("".join(f"- {_names(same, 'element')}: {_promise(what)}\n" for what, same in promises.items()))
    if kernel.alignment:
        aligned = ", ".join(f"`{argument}` to {nbytes}" for argument, nbytes in kernel.alignment.items())
        parts.append(f"Alignment in bytes: {aligned}.\n")
    if kernel.rules:
        parts += ["It asks besides:\n", _rules(kernel.rules)]
    return parts


def _promise(guarantee: PrecisionGuarantee) -> str:
    math, sums, partial = guarantee.math_precision, guarantee.accumulator, guarantee.partial_sums
    assert math is not None
    assert sums is not None
    assert partial is not None
    kept = {
        "the same bits on the same hardware": guarantee.bit_stable_on_same_hardware,
        "the same bits in every run": guarantee.deterministic,
        "a row's bits independent of the other rows": guarantee.batch_invariant,
    }
    promises = [text for text, value in kept.items() if value] or ["nothing about bits"]
    return (
        f"multiplies {math.name.lower()}, sums in {sums.name.lower()}, keeps partial sums in {partial.name.lower()}; "
        f"promises {', '.join(promises)}."
    )

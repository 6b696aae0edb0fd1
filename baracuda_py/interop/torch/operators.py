"""torch operators made from ops: schema, implementation and fake from descriptor and argument specs alone.

An operator takes what the op's `Signature` says, tensors that may be absent as `Tensor?`. Outputs are new tensors; one
that the op also reads is an argument that is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any

import attrs
import torch
from attrs import frozen

import baracuda_py as bp
from baracuda_py.errors import Unsupported
from baracuda_py.interop.signatures import Option, Signature
from baracuda_py.interop.torch.calls import readable, workspace_for
from baracuda_py.interop.torch.gradients import kernel_without_gradient
from baracuda_py.plan import Plan
from baracuda_py.registry import Op, Registry
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.elements import element_of_torch
from baracuda_py.vocab.enums import ElementKind

__all__ = ["NAMESPACE", "TorchOperator", "define", "torch_dtype"]

NAMESPACE = "baracuda"
_TYPES = {int: "SymInt", float: "float", bool: "bool", str: "str"}
_DTYPES = {
    ElementKind[name]: getattr(torch, dtype)
    for name, dtype in (
        ("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32"), ("F64", "float64"), ("I8", "int8"),
        ("U8", "uint8"), ("I16", "int16"), ("I32", "int32"), ("I64", "int64"), ("BOOL", "bool"),
        ("FP8_E4M3", "float8_e4m3fn"), ("FP8_E5M2", "float8_e5m2"),
    )
    if name in ElementKind.__members__
}  # fmt: skip
_libraries: list[Any] = []  # an operator goes with the library that defined it


def torch_dtype(element: ElementKind) -> Any:
    """The dtype of an element; Unsupported if torch has none."""
    if element not in _DTYPES:
        raise Unsupported("torch", "torch must have the element", rule="element", got=element.name)
    return _DTYPES[element]


def _schema(option: Option) -> str:
    base = "SymInt[]" if option.kind is tuple else "str" if option.is_enum else _TYPES[option.kind]
    text = f"{base}{'?' if option.optional else ''} {option.name}"
    default = option.default
    if default is attrs.NOTHING:
        return text
    if isinstance(default, Enum):
        return f'{text}="{default.name.lower()}"'
    return f"{text}={list(default) if isinstance(default, tuple) else default}"


@frozen(eq=False)
class TorchOperator:
    """One op as a torch operator.

    Attributes:
        registry, op: whose kernels it runs.
        signature: what it takes. A tensor that is read and written is the last input, and nothing is returned.
    """

    registry: Registry[Plan]
    op: Op
    signature: Signature

    @classmethod
    def of(cls, registry: Registry[Plan], op: Op) -> TorchOperator:
        """The operator of an op."""
        return cls(registry, op, Signature.of(op))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that it takes, in order."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that it makes."""
        return self.signature.outputs

    @property
    def schema(self) -> str:
        """What torch is told."""
        tensors = [
            f"Tensor{'(a!)' if spec.role == 'inout' else '?' if spec.needed else ''} {spec.name}"
            for spec in self.inputs
        ]
        # Fields without a default first, as torch wants keywords.
        options = sorted(self.signature.options, key=lambda option: option.default is not attrs.NOTHING)
        keywords = ", ".join(_schema(option) for option in options)
        arguments = ", ".join([*tensors, *(["*", keywords] if keywords else [])])
        return f"{self.op.name}({arguments}) -> {self._returns}"

    @property
    def _returns(self) -> str:
        if not self.outputs:
            return "()"
        if any(spec.needed for spec in self.outputs):
            return "Tensor[]"
        return "Tensor" if len(self.outputs) == 1 else f"({', '.join('Tensor' for _ in self.outputs)})"

    def descriptor(self, tensors: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """What the tensors and keywords describe."""
        return self.op.descriptor(**self._fields(tensors, options))

    def _fields(self, tensors: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        return self.signature.fields(tensors, options, element_of_torch)

    def __call__(self, *tensors: Any, **options: Any) -> Any:
        """Run it: on the device of the first tensor, on its current stream; inputs that kernels cannot read as they lie
        are copied first."""
        given = self._named(tensors)
        descriptor = self.descriptor(given, options)
        plan = self.registry.select(descriptor, tensors[0].device)
        made = {
            spec.name: torch.empty(
                spec.shape_on(descriptor), dtype=torch_dtype(spec.elements_on(descriptor)[0]), device=tensors[0].device
            )
            for spec in self.outputs if spec.needed_on(descriptor)
        }  # fmt: skip
        absent = {spec.name: None for spec in self.outputs if spec.name not in made}
        alignment = plan.kernel.alignment
        for spec in self.inputs:
            if given[spec.name] is not None and not spec.written:
                given[spec.name] = readable(given[spec.name], spec.strides, alignment.get(spec.name, 1))
        plan.run(None, workspace_for(plan, tensors[0]), self.op.args(**given, **made, **absent))
        return self._result(list(made.values()))

    def fake(self, *tensors: Any, **options: Any) -> Any:
        """Tensors without data, of the shapes that a run would give; sizes may be symbols."""
        given = self._named(tensors)
        fields = self._fields(given, options)
        symbols = [value for value in fields.values() if isinstance(value, torch.SymInt)]
        target: Any = SimpleNamespace(**fields)
        plain = all(name in fields for spec in self.outputs for name in _names(spec))
        if not (symbols and plain):  # sizes that are computed are those of one problem: symbols become numbers
            target = self.op.descriptor(**{
                name: int(value) if isinstance(value, torch.SymInt) else value for name, value in fields.items()
            })  # fmt: skip
        made = [
            tensors[0].new_empty(spec.shape_on(target), dtype=torch_dtype(spec.elements_on(target)[0]))
            for spec in self.outputs if spec.needed_on(target)
        ]  # fmt: skip
        return self._result(made)

    def _named(self, tensors: Sequence[Any]) -> dict[str, Any]:
        return dict(zip((spec.name for spec in self.inputs), tensors, strict=True))

    def _result(self, made: list[Any]) -> Any:
        if self._returns in ("()", "Tensor[]"):
            return made if made else None if self._returns == "()" else []
        return made[0] if len(made) == 1 else tuple(made)


def _names(spec: TensorSpec) -> list[str]:
    """Attributes of the descriptor that an output's shape and element take."""
    shapes = spec.shape if isinstance(spec.shape, tuple) else (spec.shape,)
    names = [name for size in shapes for name in size.names]
    names += [spec.element] if isinstance(spec.element, str) else []
    return names + ([spec.needed] if spec.needed else [])


def define(registry: Registry[Plan] | None = None, ops: Sequence[str] | None = None) -> dict[str, TorchOperator]:
    """Define `torch.ops.baracuda.<op>`, for the ops named or, with None, all that the registry has.

    A gradient through one raises RuntimeError (see `gradients`): kernels for it are not registered.
    """
    registry = bp.default_registry() if registry is None else registry
    chosen = registry.ops() if ops is None else [registry.op(name) for name in ops]
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _libraries.append(library)
    made = {}
    for op in chosen:
        operator = made[op.name] = TorchOperator.of(registry, op)
        library.define(operator.schema)
        for key in ("CPU", "CUDA"):
            library.impl(op.name, operator, key)
        name = f"{NAMESPACE}::{op.name}"
        torch.library.register_fake(name, operator.fake, lib=library)
        overload = getattr(getattr(torch.ops, NAMESPACE), op.name).default
        without_gradient = kernel_without_gradient(overload, operator.signature.changed)
        library.impl(op.name, without_gradient, "Autograd", with_keyset=True)
    return made

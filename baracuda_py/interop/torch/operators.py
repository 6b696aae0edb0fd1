"""torch operators made from ops: schema, implementation and fake from descriptor and argument specs alone.

An operator takes the op's inputs, tensors that may be absent as `Tensor?`, and by keyword those fields of the
descriptor that its inputs do not tell. An int that is a dimension of an input which is always there is taken from its
shape, and an element from its dtype. Outputs are new tensors; one that the op also reads is an argument that is changed
in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import torch
from attrs import frozen

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, Unsupported
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


@frozen
class _Option:
    """A field of the descriptor that an operator takes as a keyword."""

    name: str
    kind: Any  # int, float, an enum, or tuple
    optional: bool
    default: Any

    @property
    def schema(self) -> str:
        base = "SymInt[]" if self.kind is tuple else "str" if self._is_enum else _TYPES[self.kind]
        text = f"{base}{'?' if self.optional else ''} {self.name}"
        if self.default is attrs.NOTHING:
            return text
        default = self.default
        if isinstance(default, Enum):
            return f'{text}="{default.name.lower()}"'
        return f"{text}={list(default) if isinstance(default, tuple) else default}"

    @property
    def _is_enum(self) -> bool:
        return isinstance(self.kind, type) and issubclass(self.kind, Enum)

    def value(self, given: Any) -> Any:
        """As the descriptor takes it."""
        if not self._is_enum or given is None:
            return tuple(given) if self.kind is tuple and given is not None else given
        member = self.kind.__members__.get(str(given).upper())
        if member is None:
            known = ", ".join(name.lower() for name in self.kind.__members__)
            raise InvalidProblem(self.name, f"it must be one of {known}", rule=self.name, value=given)
        return member


@frozen(eq=False)
class TorchOperator:
    """One op as a torch operator.

    Attributes:
        registry, op: whose kernels it runs.
        inputs: tensors that it takes, in order.
        outputs: tensors that it makes.
        changed: whether it has a tensor that is read and written: it is then the last input, and nothing is returned.
        options: fields of the descriptor, taken by keyword.
        from_shape: fields that an input's shape tells: the input's name, and the axis, or None for the whole shape.
        from_dtype: fields that an input's dtype tells.
    """

    registry: Registry[Plan]
    op: Op
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    changed: bool
    options: tuple[_Option, ...]
    from_shape: Mapping[str, tuple[str, int | None]]
    from_dtype: Mapping[str, str]

    @classmethod
    def of(cls, registry: Registry[Plan], op: Op) -> TorchOperator:
        """The operator of an op."""
        read = [spec for spec in op.specs if spec.role in ("in", "constant")]
        in_place = [spec for spec in op.specs if spec.role == "inout"]
        fields = {field.name: field for field in attrs.fields(op.descriptor) if field.init}
        from_shape: dict[str, tuple[str, int | None]] = {}
        from_dtype: dict[str, str] = {}
        for spec in (spec for spec in (*read, *in_place) if not spec.needed):
            if isinstance(spec.shape, tuple):
                for axis, size in enumerate(spec.shape):
                    if size.text in fields:
                        from_shape.setdefault(size.text, (spec.name, axis))
            elif spec.shape.text in fields:
                from_shape.setdefault(spec.shape.text, (spec.name, None))
            if isinstance(spec.element, str) and spec.element in fields:
                from_dtype.setdefault(spec.element, spec.name)
        types = get_type_hints(op.descriptor)
        options = [
            _option(field, types[name]) for name, field in fields.items() if name not in (*from_shape, *from_dtype)
        ]
        return cls(
            registry, op, (*read, *in_place), tuple(spec for spec in op.specs if spec.role == "out"), bool(in_place),
            tuple(options), from_shape, from_dtype,
        )  # fmt: skip

    @property
    def schema(self) -> str:
        """What torch is told."""
        tensors = [
            f"Tensor{'(a!)' if spec.role == 'inout' else '?' if spec.needed else ''} {spec.name}"
            for spec in self.inputs
        ]
        # Fields without a default first, as torch wants keywords.
        options = sorted(self.options, key=lambda option: option.default is not attrs.NOTHING)
        keywords = ", ".join(option.schema for option in options)
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
        fields = {
            name: tuple(tensors[source].shape) if axis is None else _size(tensors[source], axis, source)
            for name, (source, axis) in self.from_shape.items()
        }
        for name, source in self.from_dtype.items():
            dtype = tensors[source].dtype
            element = element_of_torch(dtype)
            if element is None:
                raise Unsupported(source, "its dtype must stand for an element", rule="dtype", got=str(dtype))
            fields[name] = element
        return fields | {
            option.name: option.value(options[option.name]) for option in self.options if option.name in options
        }

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


def _size(tensor: Any, axis: int, name: str) -> Any:
    if tensor.dim() <= axis:
        raise InvalidProblem(
            name, f"it must have more than {axis} axes", rule=f"{name} shape", value=tuple(tensor.shape)
        )
    return tensor.shape[axis]


def _option(field: Any, kind: Any) -> _Option:
    alternatives = [one for one in (get_args(kind) if get_origin(kind) is not tuple else ()) if one is not NoneType]
    optional = NoneType in get_args(kind)
    kind = alternatives[0] if optional else kind
    return _Option(field.name, tuple if get_origin(kind) is tuple else kind, optional, field.default)


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
        library.impl(op.name, kernel_without_gradient(overload, operator.changed), "Autograd", with_keyset=True)
    return made

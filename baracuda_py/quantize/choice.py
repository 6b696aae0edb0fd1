"""Which tensors of a checkpoint are linears to quantise, and why the others are left.

A linear is a matrix (oc, ic) called `<module>.weight`. What is one cannot be told from headers alone: an embedding is a
matrix too, and a few architectures store the transposed matrix. Both are known by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from baracuda_py.checkpoints.checkpoint import Checkpoint
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.patterns import Patterns, matches
from baracuda_py.errors import BaracudaError, CheckpointError, UnsupportedCheckpoint
from baracuda_py.ops.quantize.awq_gemm import OP, Int4AwqGemmDescriptor
from baracuda_py.vocab.enums import ElementKind

__all__ = ["Left", "Linear", "choose", "model_types", "weight_of"]

_FLOATS = ("F16", "BF16", "F32")
_EMBEDDINGS = ("re:.*embed", "re:.*emb$", "wte", "wpe", "shared", "relative_attention_bias")
# Left unless they are asked for: few weights, whose errors reach every output, or that no linear alone reads.
_SENSITIVE = {
    "a head": ("lm_head", "re:.*lm_head$", "head", "embed_out", "score", "classifier"),
    "a router": ("gate", "router", "shared_expert_gate"),
    "a norm": ("re:.*norm",),
    "a step size, whose weight models of Mamba's kind read directly": ("dt_proj",),
}
_ANY_IC, _ANY_OC = 128, 8  # which every group size fits
# Their linears are Conv1D, which holds (ic, oc).
_TRANSPOSED = ("clvp", "clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")


@frozen
class Linear:
    """A linear that will be quantised: its name, its weight (oc, ic), and its bias (oc,), if it has one."""

    name: str
    weight: TensorHeader
    bias: TensorHeader | None

    @property
    def oc(self) -> int:
        """Output channels."""
        return self.weight.shape[0]

    @property
    def ic(self) -> int:
        """Input channels."""
        return self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        """Of weight and bias."""
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)


@frozen
class Left:
    """A float tensor of two or more axes that is not quantised, and why."""

    tensor: TensorHeader
    why: str


def weight_of(module: str, part: str = "weight") -> str:
    """The name of a module's tensor."""
    return f"{module}.{part}" if module else part


def model_types(config: Mapping[str, Any] | None) -> dict[str, str]:
    """Every model_type in config.json, by where it says so: a model of several parts has their configurations too."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", config or {})]
    for prefix, value in waiting:
        if isinstance(value, list):
            waiting += [(f"{prefix}{index}.", one) for index, one in enumerate(value)]
        elif isinstance(value, Mapping):
            kind = value.get("model_type")
            if isinstance(kind, str) and kind:
                found[f"{prefix}model_type"] = kind
            waiting += [(f"{prefix}{key}.", one) for key, one in value.items() if isinstance(one, (Mapping, list))]
    return found


def choose(
    checkpoint: Checkpoint,
    group_size: int,
    scales_element: ElementKind | None,
    only: Sequence[str],
    skip: Sequence[str],
    types: Mapping[str, str],
) -> tuple[tuple[Linear, ...], tuple[Left, ...]]:
    """The linears to quantise, and what else has two axes or more.

    Args:
        checkpoint: not quantised.
        group_size: input channels that share a scale, or -1.
        scales_element: F16, BF16 or None.
        only: names and `re:` patterns of modules as in a configuration's lists; not empty: only these, heads, routers
            and norms too.
        skip: of modules to leave.
        types: the `model_types` of config.json.

    Raises:
        CheckpointError: it is quantised already, nothing is left to quantise, a pattern that names no matrix, or a bias
            that does not fit.
        UnsupportedCheckpoint: an architecture whose matrices are transposed.
        Unsupported: another group size or element.
    """
    OP.check(Int4AwqGemmDescriptor(0, _ANY_IC, _ANY_OC, group_size, scales_element=scales_element))
    folder = checkpoint.folder
    if len(checkpoint):
        raise CheckpointError(
            folder.path, "a checkpoint to quantise must hold plain weights", tensor=next(iter(checkpoint)),
            rule="quantised", got="a packed layer", fix="`baracuda-py convert` writes another 4-bit format",
        )  # fmt: skip
    for where, kind in types.items():
        if kind.lower() in _TRANSPOSED:
            raise UnsupportedCheckpoint(
                folder.root / "config.json", "a linear must be stored as (oc, ic)", rule="model_type",
                got=f"{where} {kind}", why="its Conv1D layers are stored as (ic, oc), which headers do not tell apart",
            )  # fmt: skip
    matrices = {
        name: header for name, header in folder.tensors.items()
        if len(header.shape) > 1 and (header.dtype in _FLOATS or header.dtype.startswith("F8"))
    }  # fmt: skip
    _check_patterns(folder.path, [*only, *skip], matrices)
    rules = _Rules(group_size, Patterns(only, "--only"), bool(only), Patterns(skip, "--skip"))
    linears, left = [], []
    for name, header in matrices.items():
        why = rules.refusal(name, header)
        if why:
            left.append(Left(header, why))
        else:
            linears.append(_linear(header, folder.tensors))
    if not linears:
        reasons = ", ".join(dict.fromkeys(one.why for one in left)) or "no matrices"
        raise CheckpointError(folder.path, "there must be a linear to quantise", rule="linears", got=reasons)
    return tuple(linears), tuple(left)


class _Rules:
    def __init__(self, group_size: int, only: Patterns, chosen: bool, skip: Patterns) -> None:
        self._group_size, self._only, self._chosen, self._skip = group_size, only, chosen, skip
        self._embeddings = Patterns(_EMBEDDINGS, "")
        self._sensitive = {why: Patterns(entries, "") for why, entries in _SENSITIVE.items()}

    def refusal(self, name: str, header: TensorHeader) -> str:
        """Why a tensor is left; `""` if it is quantised."""
        module, _, part = name.rpartition(".")
        if part != "weight":
            return "not called weight"
        if len(header.shape) != 2:
            return f"{len(header.shape)} axes"
        if header.dtype not in _FLOATS:
            return f"{header.dtype}, not {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]}"
        if self._embeddings.match(module):
            return "an embedding"
        if self._skip.match(module):
            return "skipped"
        if self._chosen and not self._only.match(module):
            return "not asked for"
        for why, patterns in self._sensitive.items():
            if not self._chosen and patterns.match(module):
                return why
        oc, ic = header.shape
        try:
            OP.check(Int4AwqGemmDescriptor(0, ic, oc, self._group_size))
        except BaracudaError as error:
            return f"{error.must} ({error.value})"
        return ""


def _check_patterns(path: object, entries: Sequence[str], matrices: Mapping[str, TensorHeader]) -> None:
    """A pattern with a typing error would leave or take what it should not, without a word."""
    modules = [name.rpartition(".")[0] for name in matrices]
    for entry in entries:
        if not any(matches(entry, module) for module in modules):
            raise CheckpointError(
                path, "a pattern must name a matrix in the checkpoint", rule="pattern", value=entry,
                why="plain ones match whole dotted components, what follows re: from the start of the name",
            )  # fmt: skip


def _linear(weight: TensorHeader, tensors: Mapping[str, TensorHeader]) -> Linear:
    module = weight.name.rpartition(".")[0]
    bias = tensors.get(weight_of(module, "bias"))
    if bias is not None and (bias.dtype not in _FLOATS or bias.shape != weight.shape[:1]):
        raise CheckpointError(
            bias.file, f"the bias of a weight {weight} must be a float of shape {list(weight.shape[:1])}",
            tensor=bias.name, rule="bias", got=str(bias),
        )  # fmt: skip
    return Linear(module, weight, bias)

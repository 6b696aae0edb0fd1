"""Reads one layer of an AWQ checkpoint in the GEMM format, as Hugging Face `*-AWQ` repositories hold it.

    config.json                     quantization_config: quant_method, bits, group_size, zero_point, version
    model.safetensors               or shards, with model.safetensors.index.json that says where each tensor is
      <layer>.qweight               (ic, oc / 8), int32: eight nibbles along oc in the order [7|5|3|1|6|4|2|0]
      <layer>.qzeros                (ic / group_size, oc / 8), int32, the same order
      <layer>.scales                (ic / group_size, oc), f16 or bf16
      <layer>.bias                  (oc,), f16, bf16 or f32; only some layers have one

The configuration says the group size and the headers must agree with it. Only the tensors asked for are read.
Source of the format: AutoAWQ, awq/modules/linear/gemm.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import frozen

from baracuda_py.errors import BaracudaError, InvalidProblem, Unsupported
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor
from baracuda_py.vocab.elements import element_of_dtype
from baracuda_py.vocab.enums import ElementKind, EpilogueKind

__all__ = ["AwqConfig", "AwqLayer", "read_config", "read_layer"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OLD_CONFIGS = ("quant_config.json", "quantize_config.json")
_PICKLES = (".bin", ".pt", ".pth")
_NIBBLES = 8  # in an int32
_NEAR_NAMES = 5  # listed when a layer is not found
_FLOATS = ("F16", "BF16", "F32")


@frozen
class AwqConfig:
    """What a checkpoint says about its quantisation.

    Attributes:
        bits: of a weight; 4.
        group_size: input channels that share a scale and a zero point; -1: all of them.
        version: `"gemm"`.
        file: where it was read.
    """

    bits: int
    group_size: int
    version: str
    file: Path


@frozen(eq=False)
class AwqLayer:
    """One quantised linear layer, as it lies in the checkpoint.

    Attributes:
        name: e.g. `"model.layers.0.mlp.gate_proj"`.
        config: of the checkpoint.
        file: the file that holds `qweight`.
        qweight: (ic, oc / 8), int32, `AwqWeightLayout.HF_GEMM`.
        qzeros: (groups, oc / 8), int32.
        scales: (groups, oc), f16 or bf16.
        bias: (oc,), or None.
    """

    name: str
    config: AwqConfig
    file: Path
    qweight: Any
    qzeros: Any
    scales: Any
    bias: Any

    @property
    def ic(self) -> int:
        """Input channels."""
        return int(self.qweight.shape[0])

    @property
    def oc(self) -> int:
        """Output channels."""
        return int(self.scales.shape[1])

    @property
    def group_size(self) -> int:
        """Input channels of one group; -1 for all of them."""
        return self.config.group_size

    def descriptor(
        self, m: int, *, element: ElementKind | None = None, epilogue: EpilogueKind | None = None
    ) -> Int4AwqGemmDescriptor:
        """The GEMM of `m` rows with this layer.

        Args:
            m: rows of the activation.
            element: of activation and output; None: as the scales.
            epilogue: None: BIAS if the layer has a bias, else IDENTITY.

        Raises:
            InvalidProblem: the epilogue needs a bias and the layer has none.
        """
        scales_element = element_of_dtype(self.scales.dtype)
        assert scales_element is not None
        if epilogue is None:
            epilogue = EpilogueKind.IDENTITY if self.bias is None else EpilogueKind.BIAS
        desc = Int4AwqGemmDescriptor(
            m,
            self.ic,
            self.oc,
            group_size=self.group_size,
            split_k_iters=None,
            weight_layout=AwqWeightLayout.HF_GEMM,
            element=scales_element if element is None else element,
            epilogue=epilogue,
            scales_element=scales_element,
        )
        if desc.has_bias and self.bias is None:
            raise InvalidProblem(
                f"{self.file}: {self.name}", f"epilogue {epilogue.name} needs a bias", rule="bias",
                got="a layer without one", fix="Use the epilogue IDENTITY",
            )  # fmt: skip
        return desc


def read_config(path: Path | str) -> AwqConfig:
    """The quantisation settings of the checkpoint folder `path`.

    Raises:
        InvalidProblem: no configuration, or one that cannot be read.
        Unsupported: another method, version or number of bits than AWQ GEMM in 4 bits.
    """
    folder = Path(path)
    names = ("config.json", *_OLD_CONFIGS)
    for name in names:
        file = folder / name
        if not file.is_file():
            continue
        found = _json(file)
        if name == "config.json":
            found = found.get("quantization_config")
        if isinstance(found, dict):
            return _config(found, file)
    _refuse_modelopt(folder / "hf_quant_config.json")
    raise InvalidProblem(
        str(folder / "config.json"), "an AWQ checkpoint must have a quantization_config", rule="quantization_config",
        got="none" if (folder / "config.json").is_file() else "no such file",
        fix=f"Point to the folder of a quantised model; {' or '.join(_OLD_CONFIGS)} would do as well",
    )  # fmt: skip


def read_layer(path: Path | str, name: str) -> AwqLayer:
    """Layer `name` of the checkpoint folder `path`.

    Raises:
        InvalidProblem: a file or tensor that is missing or cannot be read, or headers that contradict each other or
            the group size of the configuration; the message names the file and the tensor.
        Unsupported: a format other than AWQ GEMM.
    """
    folder = Path(path)
    config = read_config(folder)
    files = _tensor_files(folder)
    wanted = [f"{name}.{part}" for part in ("qweight", "qzeros", "scales")]
    if wanted[0] not in files:
        raise _missing_layer(folder, name, files)
    for key in wanted:
        if key not in files:
            raise _invalid(files[wanted[0]], key, "a quantised layer must have this tensor", "missing tensor")
    if f"{name}.bias" in files:
        wanted.append(f"{name}.bias")
    headers = {key: _header(files[key], key) for key in wanted}
    _check_headers(name, config, files, headers)
    qweight, qzeros, scales, *bias = (_read(files[key], key) for key in wanted)
    return AwqLayer(name, config, files[wanted[0]], qweight, qzeros, scales, bias[0] if bias else None)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidProblem(str(file), "the file must be readable JSON", rule="json", why=str(error)) from None


def _config(found: Mapping[str, Any], file: Path) -> AwqConfig:
    def check(key: str, allowed: bool, must: str, value: Any, fix: str = "") -> None:
        if not allowed:
            raise Unsupported(str(file), must, rule=key, value=value, fix=fix)

    method = str(found.get("quant_method", "awq")).lower()
    check("quant_method", method == "awq", "quant_method must be awq", method)
    bits = found.get("bits", found.get("w_bit"))
    check("bits", bits == 4, "weights must have 4 bits", bits)
    version = str(found.get("version", "gemm")).lower()
    if found.get("backend") == "llm-awq":
        version = "llm-awq"
    check("version", version == "gemm", "the version must be gemm", version, "Quantise with version GEMM")
    group_size = found.get("group_size", found.get("q_group_size"))
    if type(group_size) is not int or (group_size <= 0 and group_size != -1):
        raise InvalidProblem(
            str(file), "group_size must be a positive number, or -1", rule="group_size", value=group_size
        )
    return AwqConfig(4, group_size, version, file)


def _refuse_modelopt(file: Path) -> None:
    """ModelOpt calls a format of its own W4A16_AWQ: it has pre_quant_scale and no zero points."""
    if file.is_file():
        algorithm = _json(file).get("quantization", {}).get("quant_algo")
        raise Unsupported(str(file), "the format must be AWQ GEMM", rule="quant_method", value=f"ModelOpt {algorithm}")


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name to the file that holds it."""
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        with _opened(single) as opened:
            return dict.fromkeys(opened.keys(), single)
    if index.is_file():
        found = _json(index).get("weight_map")
        if not isinstance(found, dict) or not all(Path(str(file)).name == file for file in found.values()):
            raise InvalidProblem(str(index), "weight_map must map tensors to files of this folder", rule="weight_map")
        return {tensor: folder / file for tensor, file in found.items()}
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES) if folder.is_dir() else []
    raise InvalidProblem(
        str(folder), f"a checkpoint must have {_SINGLE} or {_INDEX}", rule="safetensors",
        got=", ".join(pickles) or "neither",
        why="pickled weights are not read: unpickling runs code" if pickles else "",
        fix="Save the model with safe_serialization=True" if pickles else "",
    )  # fmt: skip


def _opened(file: Path) -> Any:
    import ml_dtypes  # noqa: F401  safetensors finds bfloat16 through NumPy's registry, which this import fills
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except FileNotFoundError:
        raise InvalidProblem(str(file), "the file must exist", rule="missing file") from None
    except (OSError, SafetensorError) as error:
        raise InvalidProblem(str(file), "the file must be readable safetensors", rule="file", why=str(error)) from None


@frozen
class _Header:
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: I32, F16, BF16 ...

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def _header(file: Path, tensor: str) -> _Header:
    with _opened(file) as opened:
        if tensor not in opened.keys():  # noqa: SIM118  safe_open is no mapping
            raise _invalid(file, tensor, "the tensor must be in the file that the index names", "missing tensor")
        view = opened.get_slice(tensor)
        return _Header(tuple(view.get_shape()), view.get_dtype())


def _read(file: Path, tensor: str) -> Any:
    with _opened(file) as opened:
        return opened.get_tensor(tensor)


def _check_headers(name: str, config: AwqConfig, files: Mapping[str, Path], headers: Mapping[str, _Header]) -> None:
    def check(part: str, allowed: bool, must: str, rule: str, why: str = "", kind: Any = InvalidProblem) -> None:
        key = f"{name}.{part}"
        if not allowed:
            raise _invalid(files[key], key, must, rule, got=str(headers[key]), why=why, kind=kind)

    qweight, qzeros, scales = (headers[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
    check("scales", scales.dtype in _FLOATS[:2] and len(scales.shape) == 2, "scales must be a matrix of F16 or BF16",
          "scales")  # fmt: skip
    groups, oc = scales.shape
    check(
        "qweight",
        qweight.dtype == "I32" and len(qweight.shape) == 2 and qweight.shape[1] * _NIBBLES == oc,
        f"AWQ GEMM weights must be I32 (ic, {oc} / {_NIBBLES})", "qweight",
        why=f"the scales have {oc} columns; another shape is another format", kind=Unsupported,
    )  # fmt: skip
    ic = qweight.shape[0]
    expected = 1 if config.group_size == -1 else ic // config.group_size
    check(
        "scales",
        groups == expected and (config.group_size == -1 or ic % config.group_size == 0),
        f"scales must have a row for each group of {config.group_size} of the {ic} input channels", "group_size",
        why=f"{config.file.name} says group_size = {config.group_size}",
    )  # fmt: skip
    words = (groups, oc // _NIBBLES)
    check("qzeros", qzeros == _Header(words, "I32"), f"zero points must be I32 {list(words)}", "qzeros")
    if f"{name}.bias" in headers:
        bias = headers[f"{name}.bias"]
        check("bias", bias.shape == (oc,) and bias.dtype in _FLOATS, f"a bias must be {oc} floats", "bias")


def _missing_layer(folder: Path, name: str, files: Mapping[str, Path]) -> BaracudaError:
    quantised = sorted(key.removesuffix(".qweight") for key in files if key.endswith(".qweight"))
    inside = [known for known in quantised if f".{name}." in f".{known}."]
    near = inside or get_close_matches(name, quantised, n=_NEAR_NAMES, cutoff=0.3) or quantised
    more = f" and {len(near) - _NEAR_NAMES} more" if len(near) > _NEAR_NAMES else ""
    plain = f"{name}.weight" in files
    return InvalidProblem(
        f"{folder}: {name}", f"{name}.qweight must be in the checkpoint", rule="missing layer",
        got="a layer that is not quantised" if plain else "" if quantised else "no quantised layer at all",
        fix=f"Near names: {', '.join(near[:_NEAR_NAMES])}{more}" if near else "",
    )  # fmt: skip


def _invalid(
    file: Path, tensor: str, must: str, rule: str, *, got: str = "", why: str = "",
    kind: type[BaracudaError] = InvalidProblem,
) -> BaracudaError:  # fmt: skip
    return kind(f"{file}: {tensor}", must, rule=rule, got=got, why=why)

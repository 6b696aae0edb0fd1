"""What lets `from_pretrained` of transformers put `AwqLinear`s into a model: a quantiser for `quant_method: awq`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from baracuda_py.checkpoints.folder import read_tensor
from baracuda_py.checkpoints.headers import TensorHeader, read_header
from baracuda_py.errors import CheckpointError, Unsupported
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.interop.transformers.experts import put_experts
from baracuda_py.interop.transformers.linears import (
    check_bias,
    check_called,
    find_module,
    stand_in_weight,
    untie_packed,
)
from baracuda_py.interop.transformers.places import Places

__all__ = ["BaracudaAwqQuantizer", "use_for_awq"]

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


class BaracudaAwqQuantizer(HfQuantizer):
    """Puts an `AwqLinear` wherever the checkpoint's headers have a `qweight`, whatever its lists of modules say.

    Loading raises Unsupported for another `version` than gemm or another number of bits, for scales of another dtype
    than the model is made with, and for packed weights in the place of something that is no `torch.nn.Linear` and no
    expert of a layer whose experts are all packed. It raises CheckpointError for parts that are missing or of another
    shape, for a bias where the model has none or none where it has one, and for scales of an activation.
    """

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        config = self.quantization_config
        version = getattr(config, "version", None) or getattr(config, "format", "gemm")
        version = getattr(version, "value", version)
        if version != "gemm" or config.bits != 4:
            raise Unsupported(
                "quantization_config", "it must be of 4 bits and of version gemm", rule="version",
                got=f"{config.bits} bits, {version}",
                fix="load_awq takes every format, and `baracuda-py convert` writes this one",
            )  # fmt: skip
        tensors: dict[str, TensorHeader] = {}
        for file in checkpoint_files or ():
            tensors |= read_header(Path(file)).tensors
        layers = _packed(tensors)
        places = _with_experts(model, layers)
        for name, headers in layers.items():
            place = places.module(name)
            if not places.is_ignored(f"{place}.weight") or find_module(model, place) is not None:
                _replace(model, name, place, headers, config.group_size)
        _check_scales(tensors, layers, places)
        untie_packed(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for layer in model.modules():
            if isinstance(layer, AwqLinear):
                # A model that wants a module in f32, as T5 does, has converted all of it; back again, nothing is lost.
                layer.scales = layer.scales.to(layer.weight.dtype)
                layer.bias = None if layer.bias is None else layer.bias.to(layer.weight.dtype)
                del layer.weight
        return model

    def is_serializable(self) -> bool:
        """Yes: the buffers are those of the checkpoint."""
        return True

    @property
    def is_trainable(self) -> bool:
        """No: there are no gradients."""
        return False


def use_for_awq() -> None:
    """From now on, in this process, `from_pretrained` loads AWQ folders with `AwqLinear`."""
    AUTO_QUANTIZER_MAPPING["awq"] = BaracudaAwqQuantizer


def _packed(tensors: Mapping[str, TensorHeader]) -> dict[str, dict[str, TensorHeader]]:
    """The headers of each packed layer, by the part's name."""
    layers = (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    parts = ("qweight", "qzeros", "scales", "bias")
    return {
        layer: {part: tensors[f"{layer}.{part}"] for part in parts if f"{layer}.{part}" in tensors} for layer in layers
    }


def _check_scales(tensors: Mapping[str, TensorHeader], layers: Mapping[str, Any], places: Places) -> None:
    """Raise CheckpointError if some belong to an activation: transformers would drop them with a warning at most."""
    for name, header in tensors.items():
        module, _, part = name.rpartition(".")
        place = places.tensor(name)
        if part == "scales" and module not in layers and not places.is_there(place) and not places.is_ignored(place):
            raise CheckpointError(
                header.file, "the model must have a place for every scales", tensor=name, rule="unexpected",
                got=str(header), why="AutoAWQ divides by those of an activation, and the model's activation does not",
                fix="Quantise the model anew, without scales of activations",
            )  # fmt: skip


def _with_experts(model: Any, layers: Mapping[str, Any]) -> Places:
    places = Places(model)
    packed = {name: matrix for name in layers if (matrix := places.expert(f"{name}.weight"))}
    if not packed:
        return places
    counts = Counter(matrix.experts for matrix in packed.values())
    for place, experts in put_experts(model, packed, ()).items():
        # transformers would put what is not packed into a tensor of all experts, and make weights up for the rest.
        if counts[place] != 3 * experts.num_experts:
            raise Unsupported(
                place, "all experts of a layer must be packed, or none", rule="experts",
                got=f"{counts[place]} packed matrices of {3 * experts.num_experts}",
                fix="load_awq takes layers with both",
            )  # fmt: skip
    return Places(model)


def _replace(model: Any, name: str, place: str, headers: dict[str, TensorHeader], group_size: int) -> None:
    found = find_module(model, place)
    if not isinstance(found, torch.nn.Linear):
        raise Unsupported(
            name, "a packed layer must be a torch.nn.Linear in the model", rule="linear",
            got="nothing" if found is None else type(found).__name__,
        )  # fmt: skip
    parent, _, last = place.rpartition(".")
    check_called(model.get_submodule(parent), last, name)
    if missing := {"qzeros", "scales"} - headers.keys():
        header = headers["qweight"]
        raise CheckpointError(header.file, f"there must be {missing.pop()} too", tensor=header.name, rule="parts")
    scales = headers["scales"]
    dtype = found.weight.dtype
    if _DTYPES.get(scales.dtype) is not dtype:
        raise Unsupported(
            scales.name, "scales must have the dtype that the model is made with", rule="dtype", got=scales.dtype,
            why=f"they would be converted to {dtype}", fix="Pass dtype, or use load_awq, which keeps them as they are",
        )  # fmt: skip
    bias = headers.get("bias")
    check_bias(found, name, headers["qweight"].file, None if bias is None else lambda: read_tensor(bias))
    made = AwqLinear(
        found.in_features, found.out_features, bias is not None, group_size=group_size, dtype=dtype, device="meta"
    )
    for part, header in headers.items():
        shape = tuple(getattr(made, part).shape)
        if shape != header.shape:
            raise CheckpointError(
                header.file, f"its shape must be {list(shape)}, as the model is", tensor=header.name, rule="shape",
                got=str(header),
            )  # fmt: skip
    stand_in_weight(made, found.weight)
    setattr(model.get_submodule(parent), last, made.eval())

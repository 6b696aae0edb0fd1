"""Models of transformers with AWQ weights, read from a checkpoint in any 4-bit format.

    from baracuda_py.interop.transformers import load_awq
    model = load_awq("models/some-awq", "cuda")

The model is made without memory; then every packed layer of the checkpoint becomes an `AwqLinear` in the place of its
`torch.nn.Linear`, and every other tensor goes to the parameter of its name, one after the other: on the host there is
never more than one layer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from baracuda_py.checkpoints.checkpoint import Checkpoint, open_checkpoint
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.errors import CheckpointError, Unsupported
from baracuda_py.interop.torch import AwqLinear, as_tensor
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout

try:
    import torch
    import transformers
except ImportError:
    raise Unsupported(
        "baracuda_py.interop.transformers", "transformers must be installed", rule="transformers",
        fix="pip install transformers",
    ) from None  # fmt: skip

__all__ = ["load_awq"]


def load_awq(
    path: str | os.PathLike[str],
    device: Any = None,
    *,
    dtype: Any = None,
    layout: AwqWeightLayout = AwqWeightLayout.HF_GEMM,
    model_class: Any = None,
) -> Any:
    """The model of a folder, ready to run: in evaluation mode, without gradients.

    What is quantised is decided by the tensors that are there, not by the configuration's list of what is not.

    Args:
        path: a folder with config.json and safetensors; nothing is downloaded.
        device: of torch; None: the CPU.
        dtype: of everything that is not packed, and of the activations: float16 or bfloat16; None: that of the two
            which the configuration says, else float16.
        layout: of the packed weights; TILED is made on the device, a layer at a time.
        model_class: of transformers; None: `AutoModelForCausalLM`.

    Raises:
        CheckpointError: the folder is damaged; it has a tensor for which the model has no place, of another shape than
            it must be, or lacks one.
        UnsupportedCheckpoint: packed layers that the AWQ GEMM cannot run.
        Unsupported: a packed layer in the place of something that is no `torch.nn.Linear`.
    """
    checkpoint = open_checkpoint(path)
    config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would want to quantise it itself
    if dtype is None:
        said = getattr(config, "dtype", None)
        dtype = said if said in (torch.float16, torch.bfloat16) else torch.float16
    maker = transformers.AutoModelForCausalLM if model_class is None else model_class
    with torch.device("meta"):
        model = maker.from_config(config, dtype=dtype) if hasattr(maker, "from_config") else maker(config).to(dtype)
    device = torch.device("cpu" if device is None else device)

    for name in checkpoint:
        _put_layer(model, checkpoint, name, device, layout)
    for name, header in checkpoint.plain_headers.items():
        _put_tensor(model, checkpoint, name, header, device, dtype)
    _make_buffers(model, device)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    missing += [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if missing:
        raise CheckpointError(
            Path(path), "every parameter of the model must be in the checkpoint", tensor=missing[0], rule="missing",
            got=f"none of {len(missing)}",
        )  # fmt: skip
    return model.requires_grad_(False).eval()


def _put_layer(model: Any, checkpoint: Checkpoint, name: str, device: Any, layout: AwqWeightLayout) -> None:
    layer = checkpoint[name]
    found = _module(model, name)
    if not isinstance(found, torch.nn.Linear):
        got = "nothing" if found is None else type(found).__name__
        raise Unsupported(
            name, "a packed layer must be a torch.nn.Linear in the model", rule="linear", got=got,
            why="models that hold experts in one tensor have no place for packed ones" if ".experts." in name else "",
        )  # fmt: skip
    if (found.in_features, found.out_features) != (layer.ic, layer.oc):
        raise layer.invalid(
            "qweight", f"it must be {found.in_features} x {found.out_features}, as the model is", "shape",
            got=f"{layer.ic} x {layer.oc}",
        )  # fmt: skip
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, AwqLinear.from_layer(layer, device=device, layout=layout))


def _put_tensor(
    model: Any, checkpoint: Checkpoint, name: str, header: TensorHeader, device: Any, dtype: Any
) -> None:
    parent, _, last = name.rpartition(".")
    module = _module(model, parent)
    place = getattr(module, last, None)
    if not isinstance(place, torch.Tensor):
        if name.endswith((".inv_freq", ".rotary_emb.inv_freq")):
            return  # old checkpoints have what models compute
        raise CheckpointError(
            header.file, "the model must have a place for every tensor", tensor=name, rule="unexpected", got=str(header)
        )
    if tuple(place.shape) != header.shape:
        raise CheckpointError(
            header.file, f"its shape must be {list(place.shape)}, as the model is", tensor=name, rule="shape",
            got=str(header),
        )  # fmt: skip
    tensor = as_tensor(checkpoint.plain[name]).to(device)
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    if last in module._parameters:
        setattr(module, last, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        module._buffers[last] = tensor


def _module(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _make_buffers(model: Any, device: Any) -> None:
    """Buffers that are no part of a checkpoint (rotary frequencies) are computed by the model itself."""
    for module in model.modules():
        empty = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        for name in empty:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if empty:
            model._init_weights(module)

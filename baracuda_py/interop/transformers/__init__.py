"""Models of transformers with AWQ weights, read from a checkpoint in any 4-bit format.

    from baracuda_py.interop.transformers import load_awq
    model = load_awq("models/some-awq", "cuda")

The model is made without memory; then every packed layer of the checkpoint becomes an `AwqLinear` in the place of its
`torch.nn.Linear`, and every other tensor goes to the parameter of its name, one after the other: on the host there is
never more than one layer. Where the model holds the experts of a mixture in one tensor and the checkpoint has packed
ones, an `AwqExperts` takes the module's place.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from baracuda_py.checkpoints.checkpoint import Checkpoint, open_checkpoint
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.errors import CheckpointError, Unsupported
from baracuda_py.interop.torch import AwqLinear, as_tensor, fuse_projections
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout

try:
    import torch
    import transformers

    from baracuda_py.interop.transformers.experts import AwqExperts, put_experts
    from baracuda_py.interop.transformers.linears import check_bias, check_called, find_module, untie_packed
    from baracuda_py.interop.transformers.places import ExpertMatrix, Places
except ImportError:
    raise Unsupported(
        "baracuda_py.interop.transformers", "transformers 5 must be installed", rule="transformers",
        fix="pip install 'baracuda-py[transformers]'",
    ) from None  # fmt: skip

__all__ = ["AwqExperts", "load_awq"]


def load_awq(
    path: str | os.PathLike[str],
    device: Any = None,
    *,
    dtype: Any = None,
    layout: AwqWeightLayout = AwqWeightLayout.HF_GEMM,
    model_class: Any = None,
    fuse: bool = False,
) -> Any:
    """The model of a folder, ready to run: in evaluation mode, without gradients.

    It cannot be saved by `save_pretrained`, which raises Unsupported: the folder is there already.

    What is quantised is decided by the tensors that are there, not by the configuration's list of what is not.

    Args:
        path: a folder with config.json and safetensors; nothing is downloaded.
        device: of torch; None: the CPU.
        dtype: of everything that is not packed, and of the activations: float16 or bfloat16; None: that of the two
            which the configuration says, else float16.
        layout: of the packed weights; TILED is made on the device, a layer at a time.
        model_class: of transformers; None: `AutoModelForCausalLM`.
        fuse: whether queries, keys and values, and gate and up, become one layer each where they can; see
            `baracuda_py.interop.torch.fuse_projections`. Run such a model under `torch.no_grad()`.

    Raises:
        CheckpointError: the folder is damaged; it has a tensor for which the model has no place, of another shape than
            it must be, or lacks one; or a bias that the model has not, and which is not zeros.
        UnsupportedCheckpoint: packed layers that the AWQ GEMM cannot run.
        Unsupported: a packed layer in the place of something that is no `torch.nn.Linear`, nor of an expert in a model
            whose experts `AwqExperts` computes; or of a linear whose weight the model reads without calling it, as
            Mamba's `dt_proj`.
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

    places = _with_experts(model, checkpoint)
    _make_buffers(model, device)  # first: a module that makes its buffers makes its parameters anew, too
    for name in checkpoint:
        _put_layer(model, checkpoint, name, places, device, layout)
    fused: dict[str, set[ExpertMatrix]] = {}
    for header in checkpoint.plain_headers.values():
        _put_tensor(model, checkpoint, header, places, device, fused)
    untie_packed(model)
    absent = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.is_meta}
    model.tie_weights(missing_keys=absent, recompute_mapping=False)  # what the folder has of its own stays
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    missing += [name for name, buffer in model.named_buffers() if buffer.is_meta]
    missing += [name for name, put in fused.items() if len(put) < _matrices(model, name)]
    if missing:
        raise CheckpointError(
            Path(path), "every parameter of the model must be in the checkpoint", tensor=missing[0], rule="missing",
            got=f"none of {len(missing)}",
        )  # fmt: skip
    if fuse:
        fuse_projections(model)
    if (Path(path) / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(path), local_files_only=True)
    for part in model.modules() if len(checkpoint) else ():
        if isinstance(part, transformers.PreTrainedModel):
            part.config._is_quantized = True  # Jamba multiplies by a layer's weight otherwise
            part.save_pretrained = partial(_refuse_to_save, str(path))  # no method: it would tie copies to this model
    return model.requires_grad_(False).eval()


def _refuse_to_save(path: str, *_: Any, **__: Any) -> None:
    raise Unsupported(
        "save_pretrained", "the model must not be one of load_awq with packed layers", rule="save_pretrained",
        got=f"that of {path}", why="the folder would have no quantization_config by which to read the weights",
        fix="Copy the folder that it was loaded from, or give it another format with `baracuda-py convert`",
    )  # fmt: skip


def _with_experts(model: Any, checkpoint: Checkpoint) -> Places:
    """The places in the model, whose experts are `AwqExperts` now where the checkpoint has packed ones."""
    places = Places(model)
    packed = {name: matrix for name in checkpoint if (matrix := places.expert(f"{name}.weight"))}
    if not packed:
        return places
    plain = [matrix for name in checkpoint.plain_headers if (matrix := places.expert(name))]
    put_experts(model, packed, plain)
    return Places(model)


def _put_layer(
    model: Any, checkpoint: Checkpoint, name: str, places: Places, device: Any, layout: AwqWeightLayout
) -> None:
    place = places.module(name)
    found = find_module(model, place)
    if found is None and places.is_ignored(f"{place}.weight"):
        return
    layer = checkpoint[name]
    if not isinstance(found, torch.nn.Linear):
        raise Unsupported(
            name, "a packed layer must be a torch.nn.Linear in the model", rule="linear",
            got="nothing" if found is None else type(found).__name__,
            why="this model has no experts that it could be one of" if ".experts." in name else "",
        )  # fmt: skip
    parent, _, last = place.rpartition(".")
    check_called(model.get_submodule(parent), last, name)
    if (found.in_features, found.out_features) != (layer.ic, layer.oc):
        raise layer.invalid(
            "qweight", f"it must be {found.in_features} x {found.out_features}, as the model is", "shape",
            got=f"{layer.ic} x {layer.oc}",
        )  # fmt: skip
    check_bias(found, name, layer.file, (lambda: layer.bias) if layer.has_bias else None)
    made = AwqLinear.from_layer(layer, device=device, layout=layout)
    setattr(model.get_submodule(parent), last, made)


def _put_tensor(
    model: Any, checkpoint: Checkpoint, header: TensorHeader, places: Places, device: Any,
    fused: dict[str, set[ExpertMatrix]],
) -> None:  # fmt: skip
    name = header.name
    there = places.tensor(name)
    parent, _, last = there.rpartition(".")
    module = find_module(model, parent)
    place = getattr(module, last, None)
    matrix = None
    if not isinstance(place, torch.Tensor):
        if name.endswith((".inv_freq", ".rotary_emb.inv_freq")):
            return  # old checkpoints have what models compute
        matrix = places.expert(name)
        if matrix is None and places.is_ignored(there):
            return
        if matrix is None:
            raise CheckpointError(
                header.file, "the model must have a place for every tensor", tensor=name, rule="unexpected",
                got=str(header),
            )  # fmt: skip
        place = _expert_slot(model, matrix, device)
    if tuple(place.shape) != header.shape:
        raise CheckpointError(
            header.file, f"its shape must be {list(place.shape)}, as the model is", tensor=name, rule="shape",
            got=str(header),
        )  # fmt: skip
    tensor = as_tensor(checkpoint.plain[name])
    if matrix is not None:
        place.copy_(tensor)
        fused.setdefault(f"{matrix.experts}.{matrix.fused}", set()).add(matrix)
        return
    tensor = tensor.to(device)
    if tensor.is_floating_point():
        tensor = tensor.to(places.dtype(there, place.dtype))
    if last in module._parameters:
        setattr(module, last, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        module._buffers[last] = tensor


def _expert_slot(model: Any, matrix: ExpertMatrix, device: Any) -> Any:
    """The part of a tensor that holds all experts; it gets memory with the first of them."""
    module = model.get_submodule(matrix.experts)
    whole = getattr(module, matrix.fused)
    if whole.is_meta:
        whole = torch.nn.Parameter(torch.empty_like(whole, device=device), requires_grad=False)
        setattr(module, matrix.fused, whole)
    if matrix.number >= len(whole):
        return whole[:0]
    slot = whole[matrix.number]
    return slot if matrix.part == "down" else slot.chunk(2)[matrix.part == "up"]


def _matrices(model: Any, fused: str) -> int:
    """How many matrices make up a tensor of experts."""
    whole = model.get_parameter(fused)
    return len(whole) * (1 if fused.endswith("down_proj") else 2)


def _make_buffers(model: Any, device: Any) -> None:
    """Buffers that are no part of a checkpoint (rotary frequencies) are computed by the model itself.

    Parameters have no memory yet, so computing them costs nothing.
    """
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    model.initialize_weights()  # of every module: some set the buffers of others, and sub-models know how to set theirs

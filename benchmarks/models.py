"""Whole AWQ models beside the same models in fp16: logits, greedy tokens, memory, decoding and prefill, in one run.

    python benchmarks/models.py [--shapes llama-3-8b qwen2.5-0.5b] [--layout tiled] [--tiny]

Weights are random: a few blocks are made and quantised by rounding, and stand for all. Where the output layer has
weights of its own, they are the embeddings' of other tokens, and what a block adds is scaled as in GPT-2, so that the
next token wins by a margin, as in a trained model: of random logits, the first two are often closer than fp16 rounds.
The fp16 model has the weights that the packed ones stand for. The packed one has its queries, keys and values fused,
gate and up too, and its launches overlap. In both, norms, rotary embeddings and the gate's activation are
torch.compile's, because eager's small kernels would be most of a step, and attention groups queries instead of copying
keys. Decoding is one CUDA graph a step, replayed; both models take turns, each replay timed behind another, median of
20. The prefill is timed once more with fp8 activations. `--tiny` runs a toy on the CPU, prints, and writes nothing.
Writes benchmarks/results/<gpu>/models.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from attrs import evolve
from machine import gpu_environment, gpu_results, write_result
from rich.console import Console
from rich.table import Table
from transformers.integrations import sdpa_attention

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.interop.torch import AwqLinear, fuse_projections
from baracuda_py.interop.transformers import load_awq
from baracuda_py.quantize import quantize_checkpoint

SHAPES: dict[str, Callable[[], Any]] = {
    "llama-3-8b": lambda: transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, dtype="float16",
    ),
    "qwen2.5-0.5b": lambda: transformers.Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, max_position_embeddings=8192, tie_word_embeddings=True, dtype="float16",
    ),
    "tiny": lambda: transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=512, dtype="float16",
    ),
}  # fmt: skip
MADE_BLOCKS = 2
SAMPLES = 20
BATCHES = (1, 8, 32)
CONTEXT, PREFILL = 256, 2048  # tokens
FP8_ROWS = 16  # from which on a prefill in fp8 is one
PROMPTS, STEPS = 40, 64
ALONE = 8  # of the prompts


def write_model(config: Any, folder: Path, device: str) -> Path:
    """An AWQ folder of the shape: MADE_BLOCKS quantised blocks, repeated."""
    torch.manual_seed(0)
    few = type(config).from_dict({**config.to_dict(), "num_hidden_layers": MADE_BLOCKS, "layer_types": None})
    with torch.device(device):
        dense = transformers.AutoModelForCausalLM.from_config(few, dtype=torch.float16)
    for name, parameter in dense.named_parameters():
        if parameter.dim() == 2:
            std = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
            if "o_proj" in name or "down_proj" in name:
                std *= (2 * config.num_hidden_layers) ** -0.5
            torch.nn.init.normal_(parameter, std=std)
    if not config.tie_word_embeddings:
        dense.lm_head.weight.copy_(dense.model.embed_tokens.weight.roll(1, 0) * config.hidden_size**-0.5)
    dense.save_pretrained(folder / "dense")
    quantize_checkpoint(folder / "dense", folder / "few", device=device if device == "cuda" else None)
    model = checkpoints.open(folder / "few")
    layers = {new: evolve(model[name], name=new) for name in model for new in _repeated(name, config)}
    plain = {new: model.plain[name] for name in model.plain_headers for new in _repeated(name, config)}
    wanted = json.loads((folder / "few" / "config.json").read_text())
    wanted |= {"num_hidden_layers": config.num_hidden_layers, "layer_types": None}
    checkpoints.save(folder / "awq", layers, plain=plain, config=wanted)
    return folder / "awq"


def _repeated(name: str, config: Any) -> list[str]:
    parts = name.split(".")
    if "layers" not in parts:
        return [name]
    at = parts.index("layers") + 1
    blocks = range(int(parts[at]), config.num_hidden_layers, MADE_BLOCKS)
    return [".".join([*parts[:at], str(block), *parts[at + 1 :]]) for block in blocks]


def dense_of(packed: Any) -> Any:
    """The same model with fp16 weights; the packed one keeps its own."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(packed.config, dtype=torch.float16)
    for name, module in packed.named_modules():
        if not isinstance(module, AwqLinear):
            continue
        weight = torch.ops.baracuda.int4_awq_dequantize(
            module.qweight, module.scales, module.qzeros, ic=module.in_features, oc=module.out_features,
            group_size=module.group_size, weight_layout=module.layout.value, layout="rcr",
        )  # fmt: skip
        linear = model.get_submodule(name)
        linear.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
        if module.bias is not None:
            linear.bias = torch.nn.Parameter(module.bias.clone(), requires_grad=False)
    for name, parameter in packed.named_parameters():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, torch.nn.Parameter(parameter.clone(), requires_grad=False))
    for name, buffer in packed.named_buffers():
        parent, _, last = name.rpartition(".")
        module = model.get_submodule(parent)
        if last in module._buffers:
            module._buffers[last] = buffer.clone()
    model.tie_weights()
    return model.eval()


class Decoder:
    """One decoding step at a batch size, behind `CONTEXT` tokens: a CUDA graph, on the CPU a call."""

    def __init__(self, model: Any, batch: int) -> None:
        device = model.device
        self.cache = transformers.StaticCache(model.config, max_cache_len=CONTEXT + 64)
        prompt = torch.randint(3, model.config.vocab_size, (batch, CONTEXT), device=device)
        self.token = model(prompt, past_key_values=self.cache).logits[:, -1:].argmax(-1)
        position = torch.full((1, 1), CONTEXT, device=device)

        def step() -> None:
            # The same place again and again, so that replays cost the same.
            logits = model(self.token, position_ids=position, past_key_values=self.cache).logits
            self.token.copy_(logits.argmax(-1))
            torch._foreach_sub_([layer.cumulative_length for layer in self.cache.layers], 1)

        step()
        self.step: Callable[[], None] = step
        if device.type == "cuda":
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            self.step = graph.replay


def timed(calls: dict[str, Callable[[], Any]], cuda: bool, again: int) -> dict[str, list[float]]:
    """Milliseconds of `again` calls in a row, of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SAMPLES):
        for name, call in calls.items():
            call()
            if cuda:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(again):
                    call()
                stop.record()
                stop.synchronize()
                times[name].append(start.elapsed_time(stop) / again)
            else:
                begun = time.perf_counter()
                for _ in range(again):
                    call()
                times[name].append((time.perf_counter() - begun) * 1e3 / again)
    return times


def agreement(packed: Any, dense: Any) -> dict[str, Any]:
    """Error of the logits on prompts, and the part of prompts whose greedy tokens are the same for STEPS steps."""
    torch.manual_seed(1)
    prompts = torch.randint(3, packed.config.vocab_size, (PROMPTS, 16), device=packed.device)
    errors = {}
    # Each number of rows has kernels of its own: all prompts at once, one at a time, and their first tokens.
    for given in ([prompts], prompts[:ALONE, None], prompts[:ALONE, None, :1]):
        found, exact = (
            torch.cat([model(one).logits[:, -1] for one in given]).double() for model in (packed, dense)
        )
        errors[given[0].numel()] = float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))
    made = [
        model.generate(prompts, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, pad_token_id=0)
        for model in (packed, dense)
    ]
    same = float((made[0] == made[1]).all(-1).double().mean())
    # How much of that the number of rows alone does to the fp16 model: its own prompts, one at a time.
    alone = [
        dense.generate(prompt[None], max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, pad_token_id=0)
        for prompt in prompts[:ALONE]
    ]
    same_alone = sum(torch.equal(one[0], row) for one, row in zip(alone, made[1], strict=False)) / ALONE
    return {
        "logits_errors_by_rows": errors, "logits_error": max(errors.values()),
        "fp16_prompts_with_the_same_tokens_alone": same_alone,
        "prompts_with_the_same_tokens": same, "prompts": PROMPTS, "steps": STEPS,
    }  # fmt: skip


def allocated(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def measure(shape: str, layout: bp.AwqWeightLayout, device: str) -> dict[str, Any]:
    """Everything of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        begun = allocated(device)
        # The fp16 model is made from weights in a layout that is dequantised.
        stage(f"{shape}: writing an AWQ folder")
        written = write_model(SHAPES[shape](), Path(folder), device)
        stage(f"{shape}: loading it")
        packed = load_awq(written, device)
    stage(f"{shape}: unpacking")
    dense = dense_of(packed)
    before = allocated(device)
    if device == "cuda":
        fuse_small_parts(packed)
    fuse_projections(packed)
    for module in packed.modules():
        if isinstance(module, AwqLinear):
            module.repack_(layout).overlap = True
    models = {"awq": packed, "fp16": dense}
    sizes = {"awq": _nbytes(packed), "fp16": _nbytes(dense)}
    rows = []
    for batch in BATCHES:
        stage(f"{shape}: decoding, batch {batch}")
        decoders = {name: Decoder(model, batch) for name, model in models.items()}
        times = timed({name: one.step for name, one in decoders.items()}, device == "cuda", 5)
        rows.append(_row(f"decode, batch {batch}", times))
    stage(f"{shape}: prefill")
    prompt = torch.randint(3, dense.config.vocab_size, (1, PREFILL if device == "cuda" else 32), device=device)
    calls = {name: lambda m=model: m(prompt, use_cache=False, logits_to_keep=1) for name, model in models.items()}
    rows.append(_row(f"prefill, {prompt.shape[1]} tokens", timed(calls, device == "cuda", 1)))
    fp8_error = None
    if device == "cpu" or (layout is bp.AwqWeightLayout.TILED and torch.cuda.get_device_capability() == (9, 0)):
        stage(f"{shape}: prefill in fp8")
        set_fp8_rows(packed, FP8_ROWS)
        times = timed(calls, device == "cuda", 1)
        rows.append(_row(f"prefill in fp8, {prompt.shape[1]} tokens", times))
        fp8_error = _logits_error([call() for call in calls.values()])
        set_fp8_rows(packed, None)
    stage(f"{shape}: tokens")
    agreed = agreement(packed, dense)
    return {
        "shape": shape, "layout": layout.value, **agreed, "fp8_logits_error": fp8_error, "weights_nbytes": sizes,
        "weights_ratio": sizes["awq"] / sizes["fp16"], "allocated_nbytes": before - begun, "times": rows,
    }  # fmt: skip


def set_fp8_rows(model: Any, rows: int | None) -> None:
    """Have all layers multiply in fp8 from so many rows on."""
    for module in model.modules():
        if isinstance(module, AwqLinear):
            module.fp8_rows = rows


def _logits_error(outputs: list[Any]) -> float:
    found, exact = (one.logits.double() for one in outputs)
    return float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))


def stage(what: str) -> None:
    """Say what takes its time now."""
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def fuse_small_parts(model: Any) -> None:
    """Have torch.compile make one kernel each of what lies between the linear layers, for all models of this class."""
    modeling = sys.modules[type(model).__module__]
    torch._dynamo.config.recompile_limit = 64  # a batch size, a phase and a model need one each
    sdpa_attention.use_gqa_in_sdpa = lambda *_: True
    modeling.apply_rotary_pos_emb = torch.compile(modeling.apply_rotary_pos_emb)
    block = model.model.layers[0]
    norm, mlp = type(block.input_layernorm), type(block.mlp)
    norm.forward = torch.compile(norm.forward)
    gated = torch.compile(lambda gate, up: torch.nn.functional.silu(gate) * up)
    mlp.forward = lambda self, x: self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


def _nbytes(model: Any) -> int:
    tensors = {one.data_ptr(): one.nbytes for one in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def _row(what: str, times: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    tenths = {name: statistics.quantiles(values, n=10) for name, values in times.items()}
    return {
        "what": what, "ms": medians, "ratio": medians["awq"] / medians["fp16"],
        "spread_ms": {name: [values[0], values[-1]] for name, values in tenths.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["llama-3-8b", "qwen2.5-0.5b"])
    parser.add_argument("--layout", choices=[one.value for one in bp.AwqWeightLayout], default="tiled")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU: print, write nothing")
    options = parser.parse_args()
    environment = None if options.tiny else gpu_environment()
    device = "cpu" if options.tiny else "cuda"
    layout = bp.AwqWeightLayout(options.layout)
    models = []
    with torch.no_grad():  # of fused layers, only then do parts share a product
        for shape in ["tiny"] if options.tiny else options.shapes:
            models.append(measure(shape, layout, device))
    for model in models:
        title = (
            f"{model['shape']}, {model['layout']}: logits {model['logits_error']:.1e}, the same tokens for "
            f"{model['prompts_with_the_same_tokens']:.0%} of prompts, weights {model['weights_ratio']:.2f} of fp16's"
        )
        table = Table("what", "AWQ ms", "fp16 ms", "ratio", title=title)
        for row in model["times"]:
            numbers = (f"{row['ms'][name]:.3f}" for name in ("awq", "fp16"))
            table.add_row(row["what"], *numbers, f"{row['ratio']:.2f}")
        Console(width=110).print(table)
    if environment is not None:
        headlines = [
            {"what": f"{model['shape']}: {row['what']}, time over fp16's", "value": round(row["ratio"], 3), "unit": "x"}
            for model in models for row in model["times"]
        ]  # fmt: skip
        record = {**environment, "samples": SAMPLES, "models": models, "headlines": headlines}
        print(write_result(gpu_results() / "models.json", record))


if __name__ == "__main__":
    main()

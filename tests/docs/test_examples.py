"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(name, *arguments, options=()):
    command = [sys.executable, *options, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"browse_registry.py", "engine_loop.py"}


def test_the_registry_is_browsed():
    printed = run("browse_registry.py")
    assert "int4_awq_gemm" in printed
    assert "small_m_oc_major" in printed


@pytest.fixture
def model(tmp_path):
    """A small AWQ folder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from baracuda_py.quantize import quantize_checkpoint

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, initializer_range=0.2,
    )  # fmt: skip
    dense = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    dense.save_pretrained(tmp_path / "dense")
    quantize_checkpoint(tmp_path / "dense", tmp_path / "awq")
    return tmp_path / "awq"


def test_the_engine_loop_is_a_program_that_calls_nothing_deprecated(model):
    said = "`past_key_values` is deprecated"  # transformers' own imports are not to fail
    options = ("-W", f"error:{said}:FutureWarning")
    assert "tensor" in run("engine_loop.py", model, "--tokens", 5, "--prompt", 4, 5, 6, options=options)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_engine_loop_makes_the_tokens_that_the_model_does(model, device):
    import torch

    from baracuda_py.interop.transformers import load_awq

    spec = importlib.util.spec_from_file_location("engine_loop", EXAMPLES / "engine_loop.py")
    engine_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine_loop)
    loaded = load_awq(model, device)
    prompt = torch.arange(3, 15, device=device).reshape(2, 6)
    with torch.inference_mode():
        made = engine_loop.generate(loaded, prompt, 12)
        whole = torch.cat([prompt, made], 1)
        logits = loaded(whole).logits[:, 5:-1].float()
    # Greedy in the model's own eyes, up to what rounding may swap.
    best, chosen = logits.max(-1).values, logits.gather(-1, made[..., None])[..., 0]
    assert bool((best - chosen <= 2e-2 * best.abs() + 1e-2).all())
    assert len(set(made.flatten().tolist())) > 3, "tokens that differ, or nothing is shown"

"""An engine's loop over a local AWQ folder: prefill, then decoding, on a GPU as one CUDA graph that is replayed.

    python docs/examples/engine_loop.py models/some-awq --tokens 64 --prompt 1 2 3
"""

import argparse
import inspect

import torch
from transformers import StaticCache

from baracuda_py.interop.transformers import load_awq


def generate(model, prompt: torch.Tensor, tokens: int) -> torch.Tensor:
    """(batch, tokens) greedy tokens after `prompt` (batch, length)."""
    device, (batch, length) = prompt.device, prompt.shape
    # Releases of transformers before 5.24 name the argument otherwise, and ignore this name.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = {name: StaticCache(model.config, max_cache_len=length + tokens)}
    position = torch.arange(length, device=device)
    logits = model(prompt, position_ids=position[None], **cache).logits  # prefill
    token, position = logits[:, -1:].argmax(-1), position[-1:] + 1
    made = torch.empty(batch, tokens, dtype=torch.long, device=device)

    def step() -> None:
        logits = model(token, position_ids=position[None], **cache).logits
        token.copy_(logits.argmax(-1))
        position.add_(1)

    advance = step
    for index in range(tokens):
        made[:, index : index + 1] = token
        if index == tokens - 1:
            break
        if index == 1 and device.type == "cuda":  # the first step has loaded every kernel
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            advance = graph.replay
        advance()
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        print(generate(load_awq(given.folder, device), torch.tensor([given.prompt], device=device), given.tokens))

"""Which linears of a model share an input scale, and what divides their input: known for blocks like Llama's alone.

    attention    o_proj                    reads v_proj, if every query head has a value head of its own
                 q_proj, k_proj, v_proj    read input_layernorm
    mlp          down_proj                 reads act(gate_proj) * up_proj
                 gate_proj, up_proj        read post_attention_layernorm

Names do not tell what a module computes: other architectures have norms of these names in other places. So a block is
taken for one only if it holds these modules and no others, and if the model is one of `MODEL_TYPES` or the caller says
so. Elsewhere weights are rounded and clipped, but not scaled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from attrs import frozen

from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.errors import CheckpointError, InvalidProblem
from baracuda_py.quantize.calibration import Calibration
from baracuda_py.quantize.choice import Linear

__all__ = ["FOLDS", "MODEL_TYPES", "Job", "folds_in", "plan_jobs"]

FOLDS = ("auto", "llama", "none")
MODEL_TYPES = ("granite", "llama", "mistral", "qwen2", "qwen3")
# Their norms multiply by 1 + weight.
_ONE_PLUS = re.compile(
    r".*gemma.*|qwen3_(next|5).*|qwen4_exp.*|minimax_m3_vl.*|muse_(glimmer|spark).*|nemotron|step3p[57].*|videoprism.*"
)

_INPUT, _POST = "input_layernorm", "post_attention_layernorm"
_NORMS = (_INPUT, _POST)
# In each part of a block, from back to front: the readers of one input, and what makes it. A linear that takes a scale
# is quantised after it did.
_PARTS = (
    ((("self_attn.o_proj",), "self_attn.v_proj"),
     (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), _INPUT)),
    ((("mlp.down_proj",), "mlp.up_proj"), (("mlp.gate_proj", "mlp.up_proj"), _POST)),
)  # fmt: skip
_NEEDED = frozenset((*_NORMS, *(reader for part in _PARTS for readers, _ in part for reader in readers)))
# Between projections and attention; no input of a linear passes them.
_HARMLESS = frozenset(("self_attn.q_norm", "self_attn.k_norm", "self_attn.rotary_emb"))


@frozen
class Job:
    """Linears that are quantised with one input scale.

    Attributes:
        linears: one, or several that read the same input.
        activations: the linear whose activations count, as the file has them; `""`: none, so round to nearest.
        maker: the module whose output is divided by the scale; `""`: there is none, so nothing is scaled.
        why: why nothing is scaled; `""` if something is, or if there are no activations.
    """

    linears: tuple[Linear, ...]
    activations: str = ""
    maker: str = ""
    why: str = ""


def folds_in(types: Mapping[str, str], fold: str) -> str:
    """Why scales are not folded in a model; `""` if they are.

    Args:
        types: the `model_types` of its config.json.
        fold: one of `FOLDS`.

    Raises:
        InvalidProblem: another.
        CheckpointError: `"llama"` for a model whose norms are known to be others.
    """
    if fold not in FOLDS:
        raise InvalidProblem("fold", f"it must be {', '.join(FOLDS[:-1])} or {FOLDS[-1]}", rule="fold", value=fold)
    if fold == "none":
        return "folding is switched off"
    if fold == "llama":
        for where, kind in types.items():
            if _ONE_PLUS.fullmatch(kind.lower()):
                raise CheckpointError(
                    "config.json", "norms to fold into must multiply by their weight", rule="model_type",
                    got=f"{where} {kind}", why="its norms multiply by 1 + weight",
                    fix="Choose another folding (--fold none)",
                )  # fmt: skip
        return ""
    unknown = [f"{where} {kind}" for where, kind in types.items() if kind not in MODEL_TYPES]
    if not unknown and "model_type" not in types and list(types) != ["text_config.model_type"]:
        unknown = ["model_type not stated"]
    return f"{unknown[0]}: where its scales go is not known" if unknown else ""


def plan_jobs(
    linears: Sequence[Linear], tensors: Mapping[str, TensorHeader], calibration: Calibration | None, refusal: str
) -> list[tuple[Job, ...]]:
    """Chains of jobs; those of a chain depend on each other, and run in order.

    Args:
        linears: that are quantised.
        tensors: of the checkpoint.
        calibration: the activations, or None.
        refusal: why nothing is folded; `""`: what can be is.
    """
    if calibration is None:
        return [(Job((linear,)),) for linear in linears]
    chosen = {linear.name: linear for linear in linears}
    chains: dict[str, tuple[Job, ...]] = {}  # by the names of their linears
    reasons: dict[str, str] = {}
    for prefix, modules in {} if refusal else _blocks(tensors).items():
        why = _strange(modules)
        if why:
            reasons |= {prefix + module: why for module in modules}
            continue
        for part in _PARTS:
            jobs = [
                job for readers, maker in part
                for job in _edge([prefix + reader for reader in readers], prefix + maker, chosen, tensors, calibration)
            ]  # fmt: skip
            tied = any(job.maker for job in jobs)
            for chain in [tuple(jobs)] if tied else [(job,) for job in jobs]:
                chains |= dict.fromkeys((linear.name for job in chain for linear in job.linears), chain)
    for name, linear in chosen.items():
        if name not in chains:
            known = calibration.shared([name])
            why = refusal or reasons.get(name, "no part of a known block")
            chains[name] = (Job((linear,), known, why=why if known else ""),)
    return list(dict.fromkeys(chains[name] for name in chosen))


def _blocks(tensors: Mapping[str, TensorHeader]) -> dict[str, set[str]]:
    """The blocks that have a first norm, as prefixes with a dot, and the modules in each."""
    marker = f"{_INPUT}.weight"
    blocks: dict[str, set[str]] = {
        name.removesuffix(marker): set() for name in tensors if f".{name}".endswith(f".{marker}")
    }
    for name in tensors:
        module = name.rpartition(".")[0]
        starts = [0, *(index + 1 for index, letter in enumerate(module) if letter == ".")]
        for start in starts:
            if module[:start] in blocks:
                blocks[module[:start]].add(module[start:])
    return blocks


def _strange(modules: set[str]) -> str:
    """Why a block is not known; `""` if it is."""
    others, missing = sorted(modules - _NEEDED - _HARMLESS), sorted(_NEEDED - modules)
    if others:
        return f"the block has {others[0]} too"
    return f"the block has no {missing[0]}" if missing else ""


def _edge(
    readers: list[str],
    maker: str,
    chosen: Mapping[str, Linear],
    tensors: Mapping[str, TensorHeader],
    calibration: Calibration,
) -> list[Job]:
    """One job of all readers if their input can be divided, else a job for each that is quantised."""
    linears = tuple(chosen[reader] for reader in readers if reader in chosen)
    known = calibration.shared(readers)
    why = _obstacle(readers, maker, chosen, tensors)
    if known and not why:
        return [Job(linears, known, maker)]
    return [Job((linear,), known, why=why if known else "") for linear in linears]


def _obstacle(readers: list[str], maker: str, chosen: Mapping[str, Linear], tensors: Mapping[str, TensorHeader]) -> str:
    """Why the input of `readers` cannot be divided, in a block that is known; `""` if it can."""
    norm = maker.endswith(_NORMS)
    for name in readers if norm else [*readers, maker]:
        if name not in chosen:
            return f"{name.rpartition('.')[2]} is not quantised"
    widths = {chosen[reader].ic for reader in readers}
    shape = tensors[f"{maker}.weight"].shape if f"{maker}.weight" in tensors else ()
    if widths == {*shape[:1]} and len(shape) == 2 - norm:
        return ""
    if maker.endswith("v_proj"):
        return "several query heads read a value head"
    return f"{maker.rpartition('.')[2]} has the shape {list(shape)}"

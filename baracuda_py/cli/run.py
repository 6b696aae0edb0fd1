"""`baracuda-py run`: one op on real data, checked against its float64 reference."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from attrs import frozen
from rich.text import Text

import baracuda_py as bp
from baracuda_py.checkpoints.checkpoint import open_checkpoint
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.cli.output import (
    Fact,
    bytes_text,
    guarantee_words,
    print_facts,
    print_json,
    print_line,
    progress,
    time_text,
    working,
)
from baracuda_py.cli.parsing import RUN_DEVICE_HELP, parse_device, parse_enum
from baracuda_py.cli.status import ExitCode
from baracuda_py.cli.timing import STREAM, Timing, measure
from baracuda_py.errors import Unsupported
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmArgs, Int4AwqGemmDescriptor
from baracuda_py.plan import Plan
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind, EpilogueKind
from baracuda_py.vocab.tolerance import relative_tolerance

__all__ = ["Outcome", "app", "check_outcomes", "check_runs_here", "run_layer", "show"]

_SEED = 0
_SLOW_S = 0.2
_REFERENCE_ELEMENTS = 1 << 22  # weights of a block of the reference: 32 MiB in float64

app = typer.Typer(no_args_is_help=True, help="Run an op on real data and check it against its float64 reference.")


@frozen(eq=False)
class Outcome:
    """One layer's run.

    Attributes:
        layer, plan: what ran.
        relative_error: ||y - reference|| / ||reference|| (Frobenius), the reference in float64.
        tolerance: what the kernel's guarantee allows.
        timing: of further runs.
    """

    layer: PackedLayer
    plan: Plan
    relative_error: float
    tolerance: float
    timing: Timing

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; False for NaN."""
        return self.relative_error <= self.tolerance


def run_layer(
    layer: PackedLayer,
    m: int,
    *,
    device: str | int | None = None,
    element: ElementKind | None = None,
    epilogue: EpilogueKind | None = None,
    repeat: int = 5,
) -> Outcome:
    """Multiply m rows of standard normal activations by `layer` and compare with the reference.

    Raises:
        as `bp.select` and `Plan.run`; Unsupported for a dry-run device.
    """
    # As it lies in the file, or else baracuda's own layout.
    layout = AwqWeightLayout.HF_GEMM if layer.format is PackedFormat.AWQ_GEMM else AwqWeightLayout.OC_MAJOR
    desc = layer.descriptor(m, element=element, epilogue=epilogue, layout=layout)
    with working("selecting and loading a kernel"):
        plan = bp.select(desc, device)
    check_runs_here(plan.device)
    inputs = _inputs(layer, desc)
    result, timing = _run(plan, inputs, repeat)
    error = _relative_error(plan, inputs, result)
    return Outcome(layer, plan, error, relative_tolerance(plan.precision_guarantee, desc.element), timing)


def check_runs_here(device: Device) -> None:
    """Raises Unsupported for a device that is only looked at."""
    if device.dry:
        raise Unsupported(
            "run", "a run needs a device of this machine", rule="dry run", got=str(device),
            fix="baracuda-py explain int4_awq_gemm --device shows what would run",
        )  # fmt: skip


def _inputs(layer: PackedLayer, desc: Int4AwqGemmDescriptor) -> dict[str, Any]:
    import numpy as np

    dtype = numpy_dtype(desc.element)
    random = np.random.default_rng(_SEED)
    with working("reading the layer"):
        operands = layer.gemm_operands(desc.weight_layout)
    return {
        "activation": random.standard_normal((desc.m, desc.ic), np.float32).astype(dtype),
        "weight_packed": operands.weight_packed,
        "scales": operands.scales,
        "zeros": operands.zeros,
        "bias": operands.bias.astype(dtype) if desc.has_bias and operands.bias is not None else None,
    }


def _run(plan: Plan, inputs: dict[str, Any], repeat: int) -> tuple[Any, Timing]:
    """The output as a NumPy array, and the time of `repeat` more runs."""
    import numpy as np

    desc = plan.descriptor
    output = np.full((desc.m, desc.oc), np.nan, numpy_dtype(desc.element))  # what is not written is seen
    host_arrays = {**inputs, "output": output}
    arrays: dict[str, Any] = {n: a if a is None else bp.to_device(a, plan.device) for n, a in host_arrays.items()}
    workspace = bp.allocate_workspace(plan)
    call = plan.bind(Int4AwqGemmArgs(**arrays), workspace, STREAM)
    start = time.perf_counter()
    with working(f"running on {plan.device}"):
        call()
        written = arrays["output"]
        result = output if written is output else written.numpy()  # a copy: it waits for the GPU
    slow = time.perf_counter() - start > _SLOW_S
    with working(f"timing {repeat} runs") if slow else nullcontext():  # a spinner's thread disturbs short runs
        return result, measure(call, plan.device, repeat)


def _relative_error(plan: Plan, inputs: dict[str, Any], result: Any) -> float:
    """Blocks of output channels, so that no float64 copy of a large weight is ever held."""
    import numpy as np

    desc = plan.descriptor
    columns = max(8, _REFERENCE_ELEMENTS // desc.ic // 8 * 8)  # a packed word holds 8
    difference = norm = 0.0
    with progress("computing the float64 reference", desc.oc) as advance:
        for start in range(0, desc.oc, columns):
            stop = min(start + columns, desc.oc)
            block = attrs.evolve(desc, oc=stop - start)
            exact = plan.op.reference(block, **_columns(inputs, desc.weight_layout, start, stop))
            difference += float(np.square(result[:, start:stop].astype(np.float64) - exact).sum())
            norm += float(np.square(exact).sum())
            advance(stop - start)
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(np.sqrt(difference / norm))


def _columns(inputs: dict[str, Any], layout: AwqWeightLayout, start: int, stop: int) -> dict[str, Any]:
    """The inputs of output channels start..stop; both are multiples of 8."""
    words, channels = slice(start // 8, stop // 8), slice(start, stop)
    bias, weight = inputs["bias"], inputs["weight_packed"]
    return {
        "activation": inputs["activation"],
        "weight_packed": weight[channels] if layout is AwqWeightLayout.OC_MAJOR else weight[:, words],
        "scales": inputs["scales"][:, channels],
        "zeros": inputs["zeros"][:, words],
        "bias": None if bias is None else bias[channels],
    }


def show(outcome: Outcome) -> None:
    """The run as a block of facts under the layer's name."""
    print_line(outcome.layer.name, "bold")
    print_facts(_facts(outcome))


def _facts(outcome: Outcome) -> list[Fact]:
    plan, timing = outcome.plan, outcome.timing
    desc = plan.descriptor
    group = "one group" if desc.group_size == -1 else f"groups of {desc.group_size}"
    scales = "" if desc.scales_kind is desc.element else f", scales {desc.scales_kind.name.lower()}"
    error = f"{outcome.relative_error:.2e} of the float64 reference, tolerance {outcome.tolerance:.2e}"
    return [
        ("problem", f"({desc.m} x {desc.ic}) times ({desc.ic} x {desc.oc}), 4 bits in {group}"),
        ("", f"{desc.element.name.lower()}{scales}, {desc.weight_layout.value} weights, {_epilogue(outcome)}"),
        ("device", str(plan.device)),
        ("kernel", plan.sku.token),
        ("guarantee", guarantee_words(plan.precision_guarantee)),
        ("workspace", bytes_text(plan.workspace_size)),
        ("error", Text(f"{error}: ") + (Text("ok", "green") if outcome.passed else Text("TOO LARGE", "bold red"))),
        ("time", f"{time_text(timing.median_us)}, median of {timing.repeat}, {timing.clock}"),
    ]


def _epilogue(outcome: Outcome) -> str:
    epilogue = outcome.plan.descriptor.epilogue.name.lower().replace("_", " + ")
    ignored = outcome.layer.has_bias and not outcome.plan.descriptor.has_bias
    return f"epilogue {epilogue}{' (the bias is left out)' if ignored else ''}"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The same facts, for scripts."""
    plan, desc = outcome.plan, outcome.plan.descriptor
    return {
        "layer": outcome.layer.name,
        "file": str(outcome.layer.file),
        "descriptor": attrs.asdict(desc),
        "device": str(plan.device),
        "sku": plan.sku.token,
        "guarantee": plan.precision_guarantee,
        "workspace_bytes": plan.workspace_size,
        "relative_error": outcome.relative_error,
        "tolerance": outcome.tolerance,
        "passed": outcome.passed,
        "median_us": outcome.timing.median_us,
        "repeat": outcome.timing.repeat,
        "clock": outcome.timing.clock,
    }


def check_outcomes(*outcomes: Outcome) -> None:
    """Exit with FAILED if one of them is further from the reference than its kernel's guarantee allows."""
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(ExitCode.FAILED)


DeviceOption = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help=RUN_DEVICE_HELP)]
ElementOption = Annotated[
    str | None, typer.Option("--element", metavar="f16|bf16", help="Of activation and output. Default: as the scales.")
]
RepeatOption = Annotated[int, typer.Option("--repeat", min=1, help="Timed runs; the median is shown.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(
    "awq-gemm",
    epilog="Examples:\n\n"
    "baracuda-py run awq-gemm --checkpoint DIR --layer model.layers.0.mlp.gate_proj --m 16\n\n"
    "baracuda-py run awq-gemm --checkpoint DIR --layer model.layers.0.self_attn.q_proj --device host --json",
)
def awq_gemm(
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint", metavar="DIR", exists=True, file_okay=False, help="Folder of a 4-bit model."),
    ],
    layer: Annotated[str, typer.Option("--layer", metavar="NAME", help="E.g. model.layers.0.mlp.gate_proj.")],
    m: Annotated[int, typer.Option("--m", help="Rows of the activation (tokens).")] = 1,
    device: DeviceOption = None,
    element: ElementOption = None,
    epilogue: Annotated[
        str | None,
        typer.Option("--epilogue", metavar="NAME", help="Default: bias if the layer has one, else identity."),
    ] = None,
    repeat: RepeatOption = 5,
    as_json_: JsonOption = False,
) -> None:
    """Compute one layer of a 4-bit checkpoint and check it against the float64 reference.

    The activations are random. The layer's group size, bias and dtype come from the checkpoint. Weights in AWQ's GEMM
    format are used as they lie in the file, those of other formats are converted, if that keeps every weight.
    """
    outcome = run_layer(
        open_checkpoint(checkpoint).layer(layer),
        m,
        device=parse_device(device),
        element=None if element is None else parse_enum(ElementKind, element, "--element"),
        epilogue=None if epilogue is None else parse_enum(EpilogueKind, epilogue, "--epilogue"),
        repeat=repeat,
    )
    if as_json_:
        print_json(as_json(outcome))
    else:
        show(outcome)
    check_outcomes(outcome)

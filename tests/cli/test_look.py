"""`ops`, `skus`, `explain` and the way everything is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from enum import Enum

import attrs
import pytest

import baracuda_py as bp
from baracuda_py.cli import main, parsing
from baracuda_py.ops import builtin_ops
from baracuda_py.registry import Op
from baracuda_py.vocab.descriptors import descriptor, enum_field, int_field
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

AWQ = ("explain", "int4_awq_gemm", "--m", "16", "--ic", "4096", "--oc", "4096")
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def spelt(value):
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value.name.lower() if isinstance(value, Enum) else "none" if value is None else str(value)


def test_ops_lists_every_op(run):
    listed = json.loads(run("ops", "--json").out)
    assert [one["name"] for one in listed] == [op.name for op in bp.default_registry().ops()]
    for one in listed:
        assert one["name"] in run("ops").out
        assert one["gpu_kernels"] + one["host_kernels"] == len(bp.default_registry().op(one["name"]).kernels)


def test_skus_piped_are_tokens_that_parse_back(run):
    result = run("skus")
    assert tuple(map(KernelSku.parse, result.out.splitlines())) == bp.default_registry().skus()


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (("--category", "softmax"), lambda s: s.category is bp.OpCategory.SOFTMAX),
        (("--element", "BF16"), lambda s: s.element is bp.ElementKind.BF16),
        (("--backend", "host", "--epilogue", "bias-gelu"), lambda s: (s.backend.name, s.epilogue.name)
         == ("HOST", "BIAS_GELU")),
        (("--arch", "sm80"), lambda s: s.arch is bp.ArchSku.SM80),
        (("--variant", "numpy"), lambda s: s.variant == "numpy"),
        (("--op", "int4_awq_gemm"), lambda s: s.kind is bp.QuantizeKind.INT4_AWQ_GEMM),
        (("--batch-invariant", "--deterministic"), lambda s: s.precision_guarantee.batch_invariant
         and s.precision_guarantee.deterministic),
        (("--guarantee", "any-f32-any-SDB", "--bit-stable"), lambda s: s.precision_guarantee.satisfies(
            PrecisionGuarantee(accumulator=bp.ElementKind.F32, bit_stable_on_same_hardware=True))),
    ],
)  # fmt: skip
def test_skus_are_those_that_match_every_filter(run, options, holds):
    every = bp.default_registry().skus()
    wanted = [sku.token for sku in every if holds(sku)]
    assert 0 < len(wanted) < len(every)
    assert run("skus", *options, "--tokens").out.splitlines() == wanted
    assert [one["sku"] for one in json.loads(run("skus", *options, "--json").out)] == wanted


@pytest.mark.parametrize("options", [("--element", "f17"), ("--guarantee", "f32"), ("--nope",)])
def test_a_wrong_filter_is_wrong_usage(run, options):
    result = run("skus", *options)
    assert result.code == 2
    assert options[0] in result.err


def test_an_unknown_op_is_refused_with_the_known_ones(run):
    result = run("skus", "--op", "awq")
    assert result.code == 3
    assert "int4_awq_gemm" in result.err


def test_explain_shows_the_choice_its_launches_and_every_refusal(run):
    result = run(*AWQ, "--device", "sm_90", "--json")
    explained = json.loads(result.out)
    expected = bp.explain(bp.Int4AwqGemmDescriptor(16, 4096, 4096), "sm_90")
    assert result.code == 0
    assert explained["chosen"] == expected.chosen.sku.token
    assert [one["sku"] for one in explained["candidates"]] == [one.sku.token for one in expected.candidates]
    assert len(explained["launches"]) == len(bp.select(expected.descriptor, "sm_90").launches)
    for one, candidate in zip(explained["candidates"], expected.candidates, strict=True):
        assert (one["refusal"] is None) == (candidate.refusal is None)
        if candidate.refusal is None:
            assert one["workspace_bytes"] == candidate.kernel.workspace(expected.descriptor, expected.device)
            assert one["estimate_us"] == pytest.approx(candidate.cost_us)
        else:
            assert one["refusal"]["rule"] == candidate.refusal.rule


def test_explain_groups_what_is_refused_for_one_reason(run):
    expected = bp.explain(bp.Int4AwqGemmDescriptor(16, 4096, 4096), "sm_90")
    short = run(*AWQ, "--device", "sm_90").out
    block = short[short.index("Refused (") :].splitlines()[1:]
    assert sum(int(line.split()[0]) for line in block) == len(expected.refusals)
    assert len(block) < 8
    every = run(*AWQ, "--device", "sm_90", "--all").out
    assert len(every.splitlines()) > len(expected.refusals)
    for refused in expected.refusals:
        assert refused.sku.token in every


def test_explain_takes_preferences(run):
    (sku,) = bp.default_registry().skus(
        op="int4_awq_gemm",
        variant="splitk_oc_major",
        element=bp.ElementKind.F16,
        epilogue=bp.EpilogueKind.IDENTITY,
    )
    token = sku.token
    pinned = json.loads(run(*AWQ, "--device", "sm_90", "--sku", token, "--json").out)
    assert pinned["chosen"] == token
    limited = json.loads(run(*AWQ, "--device", "sm_90", "--max-workspace-bytes", "1", "--json").out)
    assert any(c["refusal"] and c["refusal"]["rule"] == "max_workspace_bytes" for c in limited["candidates"])
    strict = json.loads(run(*AWQ, "--device", "host", "--require", "any-any-any-SDb", "--json").out)
    assert strict["chosen"] is None
    assert strict["error"]["type"] == "NoKernel"


@pytest.mark.parametrize("form", [(), ("--json",), ("--all",)])
def test_explain_of_a_problem_that_breaks_a_rule_is_refused(run, form):
    result = run(*AWQ[:-1], "4100", *form)
    assert result.code == 3
    assert "oc must be a multiple of 8" in result.out


def test_no_kernel_is_told_in_a_few_lines(run, no_gpu, checkpoint):
    without = run("explain", "int4_awq_gemm", "--m", "16", "--ic", "64", "--oc", "64", "--require", "any-any-any-SDb")
    assert without.code == 3
    assert "none" in without.out


@pytest.mark.parametrize("op", builtin_ops(), ids=lambda op: op.name)
def test_explain_has_an_option_for_each_field_of_every_op(run, op: Op):
    example = next(one for one in op.examples if not op.is_empty(one))
    arguments = []
    for attribute in attrs.fields(op.descriptor):
        arguments += ["--" + attribute.name.replace("_", "-"), spelt(getattr(example, attribute.name))]
    result = run("explain", op.name, *arguments, "--device", "host", "--json")
    assert result.code == 0
    assert json.loads(result.out)["chosen"] == bp.select(example, "host").sku.token
    help_text = run("explain", op.name, "--help").out
    for attribute in attrs.fields(op.descriptor):
        assert f"--{attribute.name.replace('_', '-')} " in help_text


class Mode(Enum):
    """Of the descriptor below."""

    FAST = 1
    SLOW_AND_RIGHT = 2


@descriptor
class EveryKindOfFieldDescriptor:
    """Fields of every kind.

    Attributes:
        shape, tile: extents,
            over two lines.
        mode: how.
    """

    shape: tuple[int, ...] = int_field()
    tile: int | None = int_field(default=4)
    pads: tuple[int, ...] | None = int_field(default=None)
    mode: Mode = enum_field(Mode, default=Mode.FAST)
    scale: float = attrs.field(default=0.5)
    causal: bool = attrs.field(default=False)


def field_op() -> Op:
    return attrs.evolve(builtin_ops()[0], descriptor=EveryKindOfFieldDescriptor, rules=())


def parse(**texts):
    return parsing.make_descriptor(field_op(), texts)


def test_fields_of_every_kind_are_parsed():
    assert parse(shape="2,3,4") == EveryKindOfFieldDescriptor((2, 3, 4))
    assert parse(shape="7", tile="none", pads="0,-1", mode="slow-and-right", scale="2", causal="true") == (
        EveryKindOfFieldDescriptor((7,), None, (0, -1), Mode.SLOW_AND_RIGHT, 2.0, True)
    )


@pytest.mark.parametrize(
    "wrong",
    [{"shape": "2,x"}, {"shape": "2", "tile": "1.5"}, {"shape": "2", "mode": "quick"}, {"shape": "2", "causal": "si"}],
)
def test_a_field_that_does_not_parse_is_wrong_usage(wrong):
    with pytest.raises(parsing.typer.BadParameter):
        parse(**wrong)


def test_the_help_of_a_field_is_its_docstring_and_its_rules():
    options = {option.field: option for option in parsing.descriptor_options(field_op())}
    assert options["shape"].help == "Extents, over two lines. (such as 2,3,4)"
    assert options["tile"].help.startswith("Extents, over two lines.")
    assert options["mode"].help == "How. (fast, slow_and_right)"
    assert options["shape"].required
    assert (options["tile"].default, options["pads"].default) == ("4", "none")
    awq = {option.field: option for option in parsing.descriptor_options(bp.default_registry().op("int4_awq_gemm"))}
    assert "oc % 8" in awq["oc"].help
    assert "32, 64, 128, -1" in awq["group_size"].help


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "arguments", [("demo", "--device", "host"), ("ops",), ("skus",), (*AWQ, "--device", "sm_90"), ("doctor",)]
)
def test_a_terminal_is_never_overrun(run, columns, arguments):
    shown = ANSI.sub("", run(*arguments, columns=columns).out)
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown


def test_piped_output_is_plain_and_whole(run, no_gpu):
    for arguments in (("demo",), ("skus",), AWQ, (*AWQ, "--all"), ("ops",), ("doctor",)):
        out = run(*arguments).out
        assert "\x1b" not in out
        assert "…" not in out
        assert not any(line != line.rstrip() for line in out.splitlines())
    chosen = bp.select(bp.Int4AwqGemmDescriptor(16, 4096, 4096), "host").sku.token
    assert f"* {chosen}" in run(*AWQ, "--device", "host").out.splitlines()


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("run",), ("run", "awq-gemm"), ("ops",), ("skus",), ("explain",), ("doctor",),
                ("inspect",), *[("explain", op.name) for op in builtin_ops()]]
)  # fmt: skip
def test_every_command_has_help_with_an_example(run, command):
    result = run(*command, "--help")
    assert result.code == 0
    text = " ".join(result.out.split())
    assert "baracuda-py demo" in text if not command else f"baracuda-py {command[0]}" in text.partition("Example")[2]


def test_the_help_documents_the_exit_codes(run):
    text = " ".join(run("--help").out.split())
    assert "Exit codes: 0 done; 1 a computation or a check failed; 2 wrong usage; 3 refused" in text


def test_a_traceback_is_shown_when_it_is_asked_for(checkpoint, monkeypatch):
    arguments = ["run", "awq-gemm", "--checkpoint", str(checkpoint), "--layer", "nope"]
    with pytest.raises(bp.errors.InvalidProblem):
        main(["--traceback", *arguments])
    monkeypatch.setenv("BARACUDA_PY_TRACEBACK", "1")
    with pytest.raises(bp.errors.InvalidProblem):
        main(arguments)


def test_a_process_pipes_tokens_to_a_reader_that_leaves_early():
    code = "from baracuda_py.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "40"}
    with subprocess.Popen(
        [sys.executable, "-c", code, "skus"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert KernelSku.parse(process.stdout.readline().rstrip("\n")).token
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_importing_the_package_imports_no_command_line():
    code = "import sys, baracuda_py; print([m for m in sys.modules if m.split('.')[0] in ('typer', 'rich')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version(run):
    assert run("--version").out == f"baracuda-py {bp.__version__}\n"


def test_a_wrong_guarantee_is_told_by_the_option_that_gave_it(run):
    for option, words in (("--require", AWQ), ("--guarantee", ("skus",))):
        result = run(*words, option, "batch_invariant")
        assert result.code == 2
        assert option in result.err
    assert run("skus", "--arch", "sm_90a").out == run("skus", "--arch", "sm90a").out != ""

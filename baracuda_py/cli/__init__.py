"""The command line, `baracuda-py`: one module a command; `main` is the entry point.

Errors of the package end a command with one message on standard error; `status` says with which exit code.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from attrs import define

import baracuda_py
from baracuda_py.cli import bench, convert, demo, doctor, explain, inspect, ops, quantize, run, skus, tune
from baracuda_py.cli.output import error_console, visible
from baracuda_py.cli.status import EXIT_CODES_HELP, exit_code, message

__all__ = ["main"]

_TRACEBACK = "BARACUDA_PY_TRACEBACK"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    epilog=f"Start with: baracuda-py demo\n\n{EXIT_CODES_HELP}",
)


@define
class _Settings:
    traceback: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. `arguments`: without the program's name; None: those of the process."""
    settings = _Settings()
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            command(args=None if arguments is None else list(arguments), prog_name="baracuda-py", obj=settings)
        except Exception as error:
            if settings.traceback:
                raise
            error_console().print(visible(f"error: {message(error)}"), markup=False)
            sys.exit(exit_code(error))


def _show_warning(text: Warning | str, *_where: Any, **_file: Any) -> None:
    error_console().print(f"warning: {text}", style="yellow", markup=False)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"baracuda-py {baracuda_py.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar=_TRACEBACK, help="Show where an error came from.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """ML kernels behind one registry: look at what there is, run it, check it."""
    context.obj.traceback = traceback


def _examples(*lines: str) -> str:
    return "\n\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *lines])


app.command("demo", epilog=_examples("baracuda-py demo", "baracuda-py demo --device host --output awq-demo"))(demo.demo)
app.add_typer(
    run.app,
    name="run",
    epilog=_examples("baracuda-py run awq-gemm --checkpoint DIR --layer model.layers.0.mlp.up_proj"),
)
app.command(
    "inspect",
    epilog=_examples("baracuda-py inspect DIR --device sm_90 --m 1 --m 512", "baracuda-py inspect DIR --json"),
)(inspect.inspect)
app.command(
    "convert",
    epilog=_examples(
        "baracuda-py convert SRC DST --to compressed-tensors", "baracuda-py convert SRC DST --to awq-gemm --lossy"
    ),
)(convert.convert)
app.command(
    "quantize",
    epilog=_examples(
        "baracuda-py quantize SRC DST --activations FILE", "baracuda-py quantize SRC DST --group-size 64 --json"
    ),
)(quantize.quantize)
app.command("ops", epilog=_examples("baracuda-py ops --json"))(ops.ops)
app.command(
    "skus",
    epilog=_examples(
        "baracuda-py skus --op int4_awq_gemm --element bf16", "baracuda-py skus --arch sm80 --batch-invariant | head"
    ),
)(skus.skus)
app.add_typer(
    typer.Typer(cls=explain.ExplainGroup),
    name="explain",
    no_args_is_help=True,
    help="Show which kernel would serve a problem of any op, and why the others would not.",
    epilog=_examples(
        "baracuda-py explain int4_awq_gemm --m 16 --ic 4096 --oc 4096 --device sm_90",
        "baracuda-py explain softmax --shape 8,1024 --all",
    ),
)
app.command(
    "tune",
    epilog=_examples(
        "baracuda-py tune int4_awq_gemm --output tuning",
        "baracuda-py tune int4_awq_gemm --problem m=1,ic=4096,oc=4096,weight_layout=hf_gemm",
    ),
)(tune.tune)
app.command(
    "bench",
    epilog=_examples(
        "baracuda-py bench --estimate",
        "baracuda-py bench --preset qwen2.5-7b --m 1,8,64 --budget 5m --output qwen",
        "baracuda-py bench --device host --shape 1024x1024 --m 1,16",
    ),
)(bench.bench)
app.command("doctor", epilog=_examples("baracuda-py doctor", "baracuda-py doctor --require gpu --json"))(doctor.doctor)

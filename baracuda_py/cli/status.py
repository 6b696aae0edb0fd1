"""Exit codes, and how an error is told."""

from __future__ import annotations

import errno
from enum import IntEnum

from baracuda_py.errors import BaracudaError, InvalidProblem, Unsupported

__all__ = ["EXIT_CODES_HELP", "ExitCode", "exit_code", "message", "reason"]


class ExitCode(IntEnum):
    """What a script can tell from."""

    OK = 0
    FAILED = 1  # a computation or a check failed
    USAGE = 2  # the command line is wrong; what typer uses
    REFUSED = 3  # the problem is invalid, or nothing here serves it


EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 a computation or a check failed; 2 wrong usage; "
    "3 refused: the problem is invalid, or no kernel serves it."
)


_FORBIDDEN = "Name another path, or see that this one may be read and written"
_FULL = "Make room there, or name another path"
_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
}


def exit_code(error: BaseException) -> ExitCode:
    """The code for an error that ends a command."""
    return ExitCode.REFUSED if isinstance(error, (Unsupported, InvalidProblem)) else ExitCode.FAILED


def reason(error: BaracudaError) -> str:
    """The message without the place that refused."""
    return str(error).removeprefix(f"{error.where}: ")


def message(error: BaseException) -> str:
    """One readable message."""
    if isinstance(error, BaracudaError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}. {_ADVICE.get(error.errno or 0, 'Check this path')}."
    return f"unexpected {type(error).__name__}: {error} (--traceback before the command shows where)"

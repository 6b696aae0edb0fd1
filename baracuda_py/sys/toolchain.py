"""The pinned compiler of the committed PTX: NVRTC and ptxas from the wheels of `requirements-build.txt`.

NVRTC is loaded by its path, so that a CUDA toolkit on the machine is never used by accident, and ptxas is a
program; neither needs anything installed into the running interpreter.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distributions
from pathlib import Path

__all__ = ["CompileError", "Toolchain", "ToolchainError"]

_REQUIREMENTS = Path(__file__).with_name("requirements-build.txt")


class ToolchainError(RuntimeError):
    """The pinned compiler is absent, incomplete or not the pinned one."""


class CompileError(RuntimeError):
    """NVRTC or ptxas refused a source or warned about it; the text is theirs."""


class Toolchain:
    """NVRTC and ptxas below one site-packages folder.

    Attributes:
        versions: pinned version by package name.
        include: folder of the CUDA headers.
    """

    def __init__(self, site: Path) -> None:
        """Raises ToolchainError when `site` does not hold exactly the pinned packages."""
        self.versions = _pins()
        if wrong := _mismatches(site, self.versions):
            raise ToolchainError(f"{site} is not the pinned toolchain: {'; '.join(wrong)}")
        root = site / "nvidia" / "cu13"
        self.include = root / "include"
        self._ptxas = root / "bin" / "ptxas"
        library = root / "lib" / "libnvrtc.so.13"
        builtins = root / "lib" / f"libnvrtc-builtins.so.{self.nvrtc_version.rpartition('.')[0]}"
        for path in (self.include / "cuda_fp16.h", self.include / "crt", self._ptxas, library, builtins):
            if not path.exists():
                raise ToolchainError(f"{path} is missing; the wheels are laid out like this on Linux only")
        # NVRTC opens its builtins by bare name: loaded first, that name finds these and no other.
        ctypes.CDLL(str(builtins))
        self._nvrtc = ctypes.CDLL(str(library))
        self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        self._check_versions()

    @classmethod
    def find(cls, site: Path | None = None) -> Toolchain:
        """The toolchain in `site`; else the running interpreter's, if it has exactly the pinned packages;
        else the one in the user's cache, which is installed on first use (network, about 300 MB)."""
        if site is not None:
            return cls(site)
        pins = _pins()
        for path in map(Path, sys.path):
            if path.name == "site-packages" and not _mismatches(path, pins):
                return cls(path)
        return cls(_cached())

    @property
    def nvrtc_version(self) -> str:
        return self.versions["nvidia-cuda-nvrtc"]

    @property
    def ptxas_version(self) -> str:
        return self.versions["nvidia-cuda-nvcc"]

    def compile(self, source: str, name: str, options: list[str]) -> bytes:
        """PTX of CUDA C++ `source`, which messages call `name`. Raises CompileError, also for a warning."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._nvrtc.nvrtcCompileProgram(program, len(options), arguments)
            log = self._text(program, "ProgramLog").decode(errors="replace").strip()
            if status or log:
                raise CompileError(f"{name}: NVRTC says:\n{log}")
            return self._text(program, "PTX")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def assemble(self, ptx: bytes, arch: str) -> str:
        """What `ptxas -v` prints when it assembles `ptx` for `arch` (`sm_90`). Raises CompileError."""
        with tempfile.TemporaryDirectory(prefix="baracuda-ptxas-") as folder:
            source = Path(folder, "module.ptx")
            source.write_bytes(ptx)
            command: list[str | Path] = [
                self._ptxas,
                f"-arch={arch}",
                "-v",
                source,
                "-o",
                source.with_suffix(".cubin"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
        slow = "Potential Performance Loss"  # such as instructions of warpgroups that run one by one
        if done.returncode or "warning" in text or slow in text:
            raise CompileError(f"ptxas for {arch} says:\n{text.strip()}")
        return text

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw.rstrip(b"\0")

    def _call(self, function: str, *arguments: object) -> None:
        if status := getattr(self._nvrtc, function)(*arguments):
            raise ToolchainError(f"{function} failed: {self._nvrtc.nvrtcGetErrorString(status).decode()}")

    def _check_versions(self) -> None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        release = f"{major.value}.{minor.value}"
        if not self.nvrtc_version.startswith(release + "."):
            raise ToolchainError(f"the NVRTC that was loaded is {release}, not {self.nvrtc_version}")
        banner = subprocess.run([self._ptxas, "--version"], capture_output=True, text=True, check=True).stdout
        if f"V{self.ptxas_version}" not in banner:
            raise ToolchainError(f"ptxas is not {self.ptxas_version}: {banner.strip()}")


def _pins() -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", _REQUIREMENTS.read_text("utf-8"), re.MULTILINE))


def _mismatches(site: Path, pins: dict[str, str]) -> list[str]:
    present = {one.metadata["Name"].lower(): one.version for one in distributions(path=[str(site)])}
    return [
        f"{name} must be {version}, not {present.get(name, 'absent')}"
        for name, version in pins.items()
        if present.get(name) != version
    ]


def _cached() -> Path:
    """The cached toolchain's site-packages, installed if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baracuda_py"
    key = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:16]
    site = cache / f"ptx-toolchain-{key}"
    if site.exists():
        return site
    cache.mkdir(parents=True, exist_ok=True)
    print(f"installing the PTX toolchain into {site} (once, about 300 MB) ...", file=sys.stderr)
    # A venv of its own for pip: the running interpreter may have none. The move at the end is atomic, so that
    # an interrupted or concurrent installation never leaves half a toolchain behind.
    with tempfile.TemporaryDirectory(prefix="installing-", dir=cache) as folder:
        venv.create(Path(folder, "pip"), with_pip=True, symlinks=True)
        target = Path(folder, "site")
        command: list[str | Path] = [
            Path(folder, "pip", "bin", "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
        ]
        command += ["--only-binary=:all:", "--target", target, "-r", _REQUIREMENTS]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise ToolchainError(f"pip could not install {_REQUIREMENTS.name} (its message is above)") from error
        try:
            target.rename(site)
        except OSError:
            if not site.exists():
                raise
    return site

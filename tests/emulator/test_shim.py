"""What is emulated is the package's own sources: only what C++ cannot say is replaced, by the same functions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cuda_emulator.compiler import PACKAGE, SHIM, Unit, files_read, problem, sources

import baracuda_py.sys

pytestmark = pytest.mark.skipif(bool(problem()), reason=problem() or "-")

_TOOLKIT = {"cuda_fp16.h", "cuda_bf16.h"}
# What g++ cannot compile: inline PTX (an empty asm is no instruction), and an array that a launch gives its extent.
_BEYOND_CPP = re.compile(r'asm(?: volatile)?\(\s*"[^"]|extern __shared__|__cvta_generic_to_shared')


def _replaced() -> set[str]:
    return {path.relative_to(SHIM).as_posix() for path in (SHIM / "baracuda").iterdir()}


@pytest.mark.parametrize("source", sources(), ids=lambda source: f"{source.arch}.{source.module}")
def test_a_source_is_compiled_as_it_is_but_for_the_replaced_headers(source):
    read = files_read(Unit.of_source(source))
    own = {label.removeprefix("include/"): path.resolve() for label, path in source.own_files().items()}
    expected = {(SHIM / name).resolve() if name in _replaced() else path for name, path in own.items()}
    shim = {path for path in read if path.is_relative_to(SHIM)}
    assert read - shim == {path for path in expected if not path.is_relative_to(SHIM)}
    names = {path.relative_to(SHIM).as_posix() for path in shim}
    assert names - _replaced() <= _TOOLKIT | {"cuda_shim.h", "emulator.h", "numbers.h"}


def test_the_replaced_headers_are_those_that_are_beyond_cpp():
    found = {
        path.relative_to(PACKAGE / "include").as_posix()
        for path in (PACKAGE / "include").rglob("*.cuh")
        if _BEYOND_CPP.search(path.read_text("utf-8"))
    }
    assert found == _replaced()
    for source in sources():
        assert not _BEYOND_CPP.search(source.text()), f"{source.label}: belongs in a header of its own"


def _declarations(path: Path) -> list[str]:
    """The functions that a header declares or defines, up to the body, without qualifiers and spacing."""
    text = re.sub(r"//[^\n]*|#(?:[^\n]*\\\n)*[^\n]*", "", path.read_text("utf-8"))
    text = re.sub(r"__device__|__forceinline__|\binline\b", " ", text)
    found, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character == "{":
            head = text[start:index]
            if "namespace" in head:
                start = index + 1
                continue
            if depth == 0:
                found.append(head)
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            start = index + 1
        elif character == ";" and not depth:
            found.append(text[start:index])
            start = index + 1
    return [re.sub(r"\s+", "", head) for head in found]


@pytest.mark.parametrize("name", sorted(_replaced()))
def test_a_replaced_header_declares_what_the_original_declares(name):
    original, replacement = _declarations(PACKAGE / "include" / name), _declarations(SHIM / name)
    assert original == replacement
    assert len(original) >= 1


def test_every_module_is_emulated():
    emulated = {(source.module, source.arch) for source in sources()}
    assert emulated == {(module.name, module.arch) for module in baracuda_py.sys.modules()}

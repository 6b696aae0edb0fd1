"""XLA's structs as they are declared here agree with the header that the installed jaxlib ships."""

from __future__ import annotations

import shutil
import subprocess

import pytest

jax = pytest.importorskip("jax")

from baracuda_py.errors import Unsupported
from baracuda_py.interop.jax import frames
from baracuda_py.vocab.enums import ElementKind

# Struct here -> its name there, and its fields in order.
STRUCTS = {
    frames._Extension: ("XLA_FFI_Extension_Base", "struct_size type next"),
    frames._Version: ("XLA_FFI_Api_Version", "struct_size extension_start major_version minor_version"),
    frames._Metadata: ("XLA_FFI_Metadata", "struct_size api_version traits"),
    frames._MetadataExtension: ("XLA_FFI_Metadata_Extension", "extension_base metadata"),
    frames._Api: (
        "XLA_FFI_Api",
        "struct_size extension_start api_version internal_api XLA_FFI_Error_Create XLA_FFI_Error_GetMessage "
        "XLA_FFI_Error_Destroy XLA_FFI_Handler_Register XLA_FFI_Stream_Get XLA_FFI_Type_Register "
        "XLA_FFI_ExecutionContext_Get XLA_FFI_State_Set XLA_FFI_State_Get XLA_FFI_DeviceMemory_Allocate "
        "XLA_FFI_DeviceMemory_Free XLA_FFI_ThreadPool_Schedule XLA_FFI_ThreadPool_NumThreads XLA_FFI_Future_Create "
        "XLA_FFI_Future_SetAvailable XLA_FFI_Future_SetError XLA_FFI_RunId_Get XLA_FFI_DeviceOrdinal_Get",
    ),
    frames._ErrorCreate: ("XLA_FFI_Error_Create_Args", "struct_size extension_start message errc"),
    frames._StreamGet: ("XLA_FFI_Stream_Get_Args", "struct_size extension_start ctx stream"),
    frames._OrdinalGet: ("XLA_FFI_DeviceOrdinal_Get_Args", "struct_size extension_start ctx device_ordinal"),
    frames._Buffer: ("XLA_FFI_Buffer", "struct_size extension_start dtype data rank dims"),
    frames._Values: ("XLA_FFI_Args", "struct_size extension_start size types args"),
    frames._Span: ("XLA_FFI_ByteSpan", "ptr len"),
    frames._Attributes: ("XLA_FFI_Attrs", "struct_size extension_start size types names attrs"),
    frames._CallFrame: ("XLA_FFI_CallFrame", "struct_size extension_start api ctx stage args rets attrs"),
}
NUMBERS = {
    "XLA_FFI_Extension_Metadata": frames._METADATA, "XLA_FFI_AttrType_STRING": frames._STRING,
    "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE": frames.Traits.COMMAND_BUFFER_COMPATIBLE,
    **{f"XLA_FFI_Error_Code_{code.name}": code for code in frames._Code},
}  # fmt: skip
DTYPES = {
    "PRED": ElementKind.BOOL, "S8": ElementKind.S8, "U8": ElementKind.U8, "S32": ElementKind.I32,
    "S64": ElementKind.I64, "U32": ElementKind.U32, "F16": ElementKind.F16, "BF16": ElementKind.BF16,
    "F32": ElementKind.F32, "F64": ElementKind.F64, "F8E4M3FN": ElementKind.FP8_E4M3, "F8E5M2": ElementKind.FP8_E5M2,
    "C64": ElementKind.COMPLEX32, "C128": ElementKind.COMPLEX64,
}  # fmt: skip


def lines():
    """C expressions, and what they are here."""
    for here, (there, fields) in STRUCTS.items():
        assert len(fields.split()) == len(here._fields_)
        for (name, *_), field in zip(here._fields_, fields.split(), strict=True):
            member = getattr(here, name)
            yield f"offsetof({there}, {field})", member.offset
            yield f"sizeof((({there}*)0)->{field})", member.size
    yield from NUMBERS.items()
    element_of = {element: number for number, element in frames._ELEMENTS.items()}
    assert element_of.keys() == set(DTYPES.values())
    for name, element in DTYPES.items():
        yield f"XLA_FFI_DataType_{name}", element_of[element]


def test_structs_and_numbers_are_those_of_jaxlibs_header(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    if frames.header_version()[1] < 3:
        pytest.skip("this header has other names for functions that are not called")
    told = list(lines())
    text = ["#include <stdio.h>", '#include "xla/ffi/api/c_api.h"', "int main() {"]
    text += [f'printf("%ld\\n", (long)({expression}));' for expression, _ in told]
    (tmp_path / "told.c").write_text("\n".join([*text, "}"]))
    subprocess.run([compiler, "-I", jax.ffi.include_dir(), "told.c", "-o", "told"], cwd=tmp_path, check=True)
    answers = subprocess.run([tmp_path / "told"], capture_output=True, text=True, check=True).stdout.split()
    assert {expression: int(one) for (expression, _), one in zip(told, answers, strict=True)} == dict(told)


def test_another_major_version_of_the_interface_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "xla" / "ffi" / "api"
    folder.mkdir(parents=True)
    (folder / "c_api.h").write_text("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 4\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    with pytest.raises(Unsupported, match=r"version 0 of XLA's FFI \(got 1\.4\)"):
        frames.header_version()

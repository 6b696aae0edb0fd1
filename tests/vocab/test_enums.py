"""The enums keep baracuda's discriminants, and say which members are ours."""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path

import pytest

from baracuda_py.vocab import enums

FACTS = json.loads((Path(__file__).parents[1] / "data" / "baracuda_vocab.json").read_text("utf-8"))["enums"]
OURS = {
    "BackendKind": {"HOST", "CCCL"},
    "ArchSku": {"HOST", "SM100A", "SM120A"},
    "LayoutSku": {"CRR"},
    "QuantizeKind": {
        "INT4_AWQ_GEMM", "INT4_MARLIN_GEMM", "INT4_GPTQ_GEMM", "INT4_AWQ_DEQUANTIZE", "INT4_AWQ_REPACK",
        "INT4_AWQ_FP8_GEMM",
    },
}


def _flat(name: str) -> str:
    return name.replace("_", "").lower()


@pytest.mark.parametrize("name", FACTS)
def test_every_member_of_baracuda_is_here_with_its_number(name):
    ours = {_flat(member.name): int(member) for member in getattr(enums, name)}
    theirs = {_flat(member): value for member, value in FACTS[name]["variants"].items()}
    assert theirs.items() <= ours.items()


@pytest.mark.parametrize("name", FACTS)
def test_members_of_ours_continue_the_numbering(name):
    theirs = {_flat(member): value for member, value in FACTS[name]["variants"].items()}
    added = {member.name: int(member) for member in getattr(enums, name) if _flat(member.name) not in theirs}
    assert set(added) == OURS.get(name, set())
    assert sorted(added.values()) == list(range(max(theirs.values()) + 1, max(theirs.values()) + 1 + len(added)))


def test_every_enum_is_public_documented_and_unique():
    for name in enums.__all__:
        enum = getattr(enums, name)
        if not (isinstance(enum, type) and issubclass(enum, IntEnum)):
            continue
        assert enum.__doc__
        assert len({int(member) for member in enum}) == len(enum)
        assert all(member.name == member.name.upper() for member in enum)


def test_category_and_discriminant_name_an_op():
    assert set(enums.KIND_OF_CATEGORY) == set(enums.OpCategory)
    for kind in enums.KIND_OF_CATEGORY.values():
        assert issubclass(kind, IntEnum)
        assert all(0 <= int(member) < 1 << 16 for member in kind)


def test_awq_has_a_code_of_its_own():
    kinds = enums.QuantizeKind
    assert len({kinds.INT4_AWQ_GEMM, kinds.INT4_MARLIN_GEMM, kinds.INT4_GPTQ_GEMM, kinds.GGUF_MMVQ}) == 4
    assert max(FACTS["QuantizeKind"]["variants"].values()) < kinds.INT4_AWQ_GEMM

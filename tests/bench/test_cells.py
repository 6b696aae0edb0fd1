"""The problems of the benchmark: legal, counted right, and refused by name where they are not."""

from __future__ import annotations

import pytest

import baracuda_py as bp
from baracuda_py.bench.cells import PRESETS, ROWS, Cell, cells_of, parse_shape
from baracuda_py.bench.peers import Peer, read_peers
from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.vocab.enums import ElementKind, LayoutSku

F16, BF16 = ElementKind.F16, ElementKind.BF16


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_shapes_that_the_op_allows_with_groups_of_128(name):
    found = cells_of(PRESETS[name], ROWS, (F16, BF16), (128,))
    assert len(found) == 2 * 12 * len(PRESETS[name])
    assert len({cell.weights for cell in found}) == 2 * len(PRESETS[name])


def test_the_presets_hold_the_layers_that_they_are_named_for():
    assert set(PRESETS["qwen2.5-0.5b"]) == {(896, 896), (128, 896), (4864, 896), (896, 4864)}
    assert {(18944, 3584), (3584, 18944)} < set(PRESETS["qwen2.5-7b"])
    assert {(27648, 5120), (5120, 27648)} < set(PRESETS["qwen2.5-32b"])
    assert {(14336, 4096), (4096, 14336)} < set(PRESETS["mixtral-8x7b"])


def test_cells_of_the_same_weights_stand_together_and_once():
    found = cells_of([(64, 128), (128, 256), (64, 128)], [4, 1, 4], [F16], [128])
    assert [(cell.oc, cell.m) for cell in found] == [(64, 4), (64, 1), (128, 4), (128, 1)]


def test_bytes_are_those_of_the_tensors():
    cell = Cell(BF16, 64, 256, 512, 7)
    desc = cell.descriptor(bp.AwqWeightLayout.OC_MAJOR)
    nbytes = {"weight_packed": 4, "scales": 2, "zeros": 4, "activation": 2, "output": 2}
    sizes = {}
    for spec in bp.default_registry().op("int4_awq_gemm").specs:
        if spec.name in nbytes:
            a, b = spec.shape_on(desc)
            sizes[spec.name] = a * b * nbytes[spec.name]
    assert cell.weight_nbytes == sizes["weight_packed"] + sizes["scales"] + sizes["zeros"]
    assert cell.nbytes == sum(sizes.values())
    assert cell.flop == 2 * 7 * 256 * 512


def test_the_dense_product_is_of_the_same_problem():
    dense = Cell(F16, 128, 256, 512, 7).dense(F16)
    assert (dense.a_shape, dense.b_shape, dense.output_shape) == ((7, 512), (256, 512), (7, 256))
    assert dense.layout is LayoutSku.RCR


@pytest.mark.parametrize("text", ["", "4096", "4096x", "4096*4096", "axb", "-1x8", "1x2x3"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(InvalidProblem, match="OCxIC") as refused:
        parse_shape(text)
    assert refused.value.rule == "shape"
    assert parse_shape(" 14336X4096 ") == (14336, 4096)


@pytest.mark.parametrize(
    ("shape", "m", "group", "error", "said"),
    [((64, 100), 1, 128, InvalidProblem, "ic"), ((63, 128), 1, 128, InvalidProblem, "oc"),
     ((64, 128), 0, 128, InvalidProblem, "positive"), ((64, 128), -1, 128, InvalidProblem, "m"),
     ((64, 128), 1, 48, Unsupported, "group_size")],
)  # fmt: skip
def test_a_problem_that_computes_nothing_or_that_the_op_refuses_is_refused(shape, m, group, error, said):
    with pytest.raises(error, match=said):
        cells_of([shape], [m], [F16], [group])


HEADER = "n_out,k_in,m,best_peer,best_peer_us,best_over_cublas\n"


def test_peers_are_read_by_cell(tmp_path):
    path = tmp_path / "peers.csv"
    path.write_text("note," + HEADER + "x,4096,512,1,one,5.3,0.418\ny,4096,512,2,two,6.1,\n")
    assert read_peers(path) == {
        (4096, 512, 1): Peer(4096, 512, 1, "one", 5.3, 0.418), (4096, 512, 2): Peer(4096, 512, 2, "two", 6.1, None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "n_out"), ("n_out,k_in,m,best_peer\n1,2,3,x\n", "best_peer_us"), (HEADER + "a,2,3,x,1,\n", "'a'"),
     (HEADER + "1,2,3,x,,\n", "float"), (HEADER + "1,2\n", "m|int|NoneType")],
)  # fmt: skip
def test_a_file_that_lacks_a_column_or_a_number_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "peers.csv"
    path.write_text(text)
    with pytest.raises(InvalidProblem, match=said) as refused:
        read_peers(path)
    assert "peers.csv" in str(refused.value)
    with pytest.raises(InvalidProblem, match=r"absent\.csv"):
        read_peers(tmp_path / "absent.csv")

"""`inspect`: what is folded, what is said of each layer, exit codes, and names that would act on a terminal."""

from __future__ import annotations

import json
import re
import struct

import pytest

from baracuda_py import checkpoints
from baracuda_py.cli.folding import fold, fold_names
from baracuda_py.cli.output import visible

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
NBYTES = {"I32": 4, "F16": 2, "I16": 2}


def linear(ic, oc):
    groups = ic // 128
    return {"qweight": ("I32", [ic, oc // 8]), "qzeros": ("I32", [groups, oc // 8]), "scales": ("F16", [groups, oc])}


def write(folder, layers, plain=(), settings=AWQ):
    """A folder of headers; the data are a hole."""
    tensors = {f"{name}.{part}": header for name, parts in layers.items() for part, header in parts.items()}
    found, offset = {}, 0
    for name, (dtype, shape) in {**tensors, **dict(plain)}.items():
        size = NBYTES[dtype]
        for extent in shape:
            size *= extent
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(found).encode()
    folder.mkdir(exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings} if settings else {}))
    return folder


@pytest.fixture
def model(tmp_path):
    layers = {f"model.layers.{n}.mlp.{part}_proj": linear(1024, 512) for n in range(12) for part in ("up", "gate")}
    plain = {f"model.layers.{n}.norm.weight": ("F16", [1024]) for n in range(12)}
    return write(tmp_path / "some-awq", layers, {**plain, "lm_head.weight": ("F16", [64, 1024])})


@pytest.fixture
def mixed(model):
    """One layer of another size, one in another format, one that is damaged, one plain."""
    layers = {f"model.layers.{n}.mlp.up_proj": linear(1024, 512) for n in range(6)}
    layers["model.layers.2.mlp.up_proj"] = linear(1024, 1024)
    gptq = {"qweight": ("I32", [128, 512]), "qzeros": ("I32", [8, 64]), "scales": ("F16", [8, 512])}
    layers["model.layers.3.mlp.up_proj"] = gptq
    layers["model.layers.4.mlp.up_proj"] = linear(1024, 512) | {"scales": ("F16", [7, 512])}
    return write(model, layers, {"model.layers.6.mlp.up_proj.weight": ("F16", [512, 1024])})


def section(text, heading):
    """The lines below a heading."""
    return text.partition(f"{heading}\n")[2].partition("\n\n")[0].splitlines()


def test_layers_that_are_alike_are_one(run, model):
    result = run("inspect", model, "--device", "sm_90")
    assert result.code == 0
    details = "    awq_gemm, 1024 x 512, groups of 128, asymmetric, F16 scales"
    assert section(result.out, "Packed layers (24)") == [
        "  12 x model.layers.*.mlp.gate_proj", details, "  12 x model.layers.*.mlp.up_proj", details
    ]  # fmt: skip
    assert section(result.out, "Tensor parallel") == ["  columns  1, 2, 4, 8", "  rows     1, 2, 4, 8"]
    assert section(result.out, "Not quantised (13)") == [
        "  lm_head.weight  F16 [64, 1024], 128.0 KiB", "  12 x model.layers.*.norm.weight  F16 [1024], 24,576 bytes"
    ]  # fmt: skip
    assert "disagree" not in result.out
    assert "Refused" not in result.out


def test_all_lists_each_layer_and_tensor(run, model):
    out = run("inspect", model, "--all").out
    for n in range(12):
        assert f"  model.layers.{n}.mlp.up_proj\n" in out
        assert f"  model.layers.{n}.norm.weight  " in out


def test_the_kernels_are_those_of_the_inspection(run, model):
    out = run("inspect", model, "--device", "sm_80", "--m", "1", "--m", "512").out
    (first, *_) = checkpoints.inspect(model, "sm_80", m=(1, 512)).layers
    assert section(out, "Kernels on sm_80 (dry run)") == [
        f"  m = 1    {first.servings[0].sku}", f"  m = 512  {first.servings[1].sku}"
    ]  # fmt: skip


def test_what_differs_is_listed_with_its_layers(run, mixed):
    result = run("inspect", mixed, "--device", "sm_90", "--tp", "1", "--tp", "3")
    assert result.code == 3
    assert section(result.out, "Packed layers (5)")[0::2] == [
        "  3 x model.layers.{0-1,5}.mlp.up_proj", "  model.layers.2.mlp.up_proj", "  model.layers.3.mlp.up_proj"
    ]  # fmt: skip
    assert section(result.out, "Refused (1)")[0] == "  model.layers.4.mlp.up_proj"
    assert "[7, 512]" in section(result.out, "Refused (1)")[1]
    disagreement = section(result.out, "Configuration and headers disagree (2)")
    assert disagreement[:2] == [
        "  format: config.json says awq gemm, the headers GPTQ", "    model.layers.3.mlp.up_proj"
    ]  # fmt: skip
    assert disagreement[3:] == ["    model.layers.6.mlp.up_proj"]
    kernels = section(result.out, "Kernels on sm_90 (dry run)")
    assert sum(line == "              model.layers.3.mlp.up_proj" for line in kernels) == 2
    assert any("oc_major" in line for line in kernels)
    assert section(result.out, "Tensor parallel")[:2] == [
        "  columns  1", "           not 3: oc must be a multiple of 3 (got 512)."
    ]  # fmt: skip


def test_json_is_the_inspection(run, mixed):
    result = run("inspect", mixed, "--device", "sm_90", "--m", "7", "--json")
    assert result.code == 3
    assert json.loads(result.out) == checkpoints.inspect(mixed, "sm_90", m=(7,)).to_dict()


def test_the_default_is_this_machine(run, model, no_gpu):
    assert "Kernels on the host" in run("inspect", model).out


def test_a_single_file_and_an_unquantised_model(run, model, tmp_path):
    assert "24" in run("inspect", model / "model.safetensors").out
    plain = write(tmp_path / "plain", {}, {"lm_head.weight": ("F16", [4, 4])}, settings=None)
    result = run("inspect", plain)
    assert result.code == 0
    assert "says   nothing about quantisation" in result.out
    assert "Packed" not in result.out


def test_a_folder_that_is_not_read_is_refused_with_the_reason(run, model, tmp_path):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    result = run("inspect", model)
    assert (result.code, result.out) == (3, "")
    assert "unpickling runs code" in result.err
    assert run("inspect", tmp_path / "nothing").code == 2
    assert run("inspect", model, "--m", "-1").code == 2
    assert run("inspect", model, "--tp", "0").code == 2


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("form", [(), ("--all",)])
def test_a_terminal_is_never_overrun_and_a_pipe_is_plain(run, mixed, columns, form):
    shown = ANSI.sub("", run("inspect", mixed, "--device", "sm_90", *form, columns=columns).out)
    assert max(map(len, shown.splitlines())) <= columns
    piped = run("inspect", mixed, "--device", "sm_90", *form).out
    assert "\x1b" not in piped
    assert not any(line != line.rstrip() for line in piped.splitlines())
    hint = "" if form else "--all lists each layer and tensor."
    assert re.sub(r"\s", "", piped + hint) == re.sub(r"\s", "", shown)


def test_names_in_a_file_do_not_act_on_the_terminal(run, tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07\r\nmodel.\u202e0"
    folder = write(tmp_path / "evil", {f"{evil}.up": linear(1024, 512), "bad": {"qweight": ("I32", [8, 8])}},
                   {f"{evil}.weight": ("F16", [4])})  # fmt: skip
    for columns in (None, 80):
        out = run("inspect", folder, columns=columns).out
        assert ANSI.sub("", out).replace("\n", "").isprintable()
        assert "\u241b[2J" in out
    config = json.dumps({"quantization_config": {**AWQ, "version": "\x1b[2J\ud800"}})
    (folder / "config.json").write_text(config)
    result = run("inspect", folder)
    assert result.code == 3
    assert "\x1b" not in result.err
    assert "\u241b[2j" in result.err


def test_a_stand_in_is_one_character_wide():
    every = "".join(map(chr, range(0x3000))) + "\ud800\udfff\ufeff"
    shown = visible(every)
    assert len(shown) == len(every)
    assert shown.replace("\n", "").encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert visible("model.layers.0 é 漢") == "model.layers.0 é 漢"


def labels(folds):
    return [str(one) for one in folds]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.0.x", "a.1.x", "b"], ["2 x a.*.x", "b"]),
        (["a.0.x", "b.0.x"], ["a.0.x", "b.0.x"]),
        ([f"l.{n}.e.{k}.w" for n in range(3) for k in range(4)], ["12 x l.*.e.*.w"]),
        (["a.01", "a.1", f"a.{'9' * 5000}"], ["3 x a.*"]),
        ([], []),
    ],
)
def test_names_that_differ_in_numbers_are_one(names, expected):
    assert labels(fold_names(names, names)) == expected


def test_a_part_of_a_pattern_shows_its_numbers():
    among = [f"l.{n}.x" for n in range(30)]
    some = [f"l.{n}.x" for n in (*range(10), 12, 14, 20, 21, 29)]
    assert labels(fold_names(some, among)) == ["15 x l.{0-9,12,14,20-21,...}.x"]
    assert labels(fold_names(["l.5.x"], among)) == ["l.5.x"]
    assert labels(fold_names(["l.5.x", "l.4.x"], among)) == ["2 x l.{4-5}.x"]
    huge = [f"a.{'9' * 5000}", "a.1", "a.2"]
    assert len(fold_names(huge[:2], huge)) == 1


def test_every_item_is_in_one_fold():
    items = [(f"l.{n}.{part}", n % 3) for n in range(20) for part in "ab"]
    folds = fold(items, lambda item: item[0], lambda item: item[1])
    assert sorted(item for one in folds for item in one.items) == sorted(items)
    assert all(len({kind for _, kind in one.items}) == 1 for one in folds)

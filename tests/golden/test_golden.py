"""The golden vectors are what their generator writes, and the package reads them exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat

HERE = Path(__file__).resolve().parent
CASES = sorted(path.parent.name for path in HERE.glob("*/case.json"))


def test_the_files_are_what_the_generator_writes():
    check = [sys.executable, str(HERE / "generate.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_format_has_a_case():
    named = {json.loads((HERE / case / "case.json").read_text())["format"] for case in CASES}
    assert named == {format.value for format in PackedFormat}


@pytest.mark.parametrize("case", CASES)
def test_the_reader_finds_every_nibble_and_weight(case):
    described = json.loads((HERE / case / "case.json").read_text())
    expected = load_file(HERE / case / "expected.safetensors")
    layer = checkpoints.open(HERE / case)[described["layer"]]
    assert layer.format.value == described["format"]
    assert (layer.ic, layer.oc, layer.group_size) == (described["ic"], described["oc"], described["group_size"])
    assert (layer.symmetric, layer.act_order) == (described["symmetric"], described["act_order"])
    assert layer.scales_element.name == described["scales"]

    nibbles = checkpoints.unpack(layer)
    np.testing.assert_array_equal(nibbles.q, expected["q"])
    if described["symmetric"]:
        assert nibbles.z is None
    else:
        np.testing.assert_array_equal(nibbles.z, expected["z"])
    weights = nibbles.weights()
    if described["weight"] == "(q - z) * s":
        np.testing.assert_array_equal(weights, expected["weight"])
        return
    # The stored zeros are rounded to the scales' type: half a unit in its last place of s * z.
    rows = nibbles.group_of_row
    product = (nibbles.scales.astype(np.float64) * nibbles.z)[rows]
    unit = {"F16": 2.0**-11, "BF16": 2.0**-8}[described["scales"]]
    error = np.abs(weights - expected["weight"])
    assert (error <= unit * np.abs(product)).all()
    assert error.any(), "the case is there for its rounding"

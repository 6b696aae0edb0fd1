"""The ways in which the fuzzers spoil a checkpoint."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field
from whole_checkpoints import BASES, CONFIG, INDEX, Base, join, whole

__all__ = ["MUTATIONS", "Case", "build", "json_value", "write"]

_ITEMSIZES = {"F16": 2, "BF16": 2, "F32": 4, "I32": 4, "I16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F64": 8}


@define
class Case:
    """A checkpoint in the making.

    Attributes:
        random: where every choice comes from.
        files: their content, by name in the folder.
        links: name to the target of a symlink.
        late: what is done to the folder in the end.
    """

    random: random.Random
    files: dict[str, bytes]
    links: dict[str, str] = field(factory=dict)
    late: list[Callable[[Path], None]] = field(factory=list)

    def pick(self, suffix: str) -> str | None:
        """One of the files that end so."""
        names = sorted(name for name in self.files if name.endswith(suffix))
        return self.random.choice(names) if names else None


def build(source: random.Random, kinds: list[str], base: Base) -> Case:
    """A case: the whole checkpoint `base`, spoilt in these ways, one after the other."""
    case = Case(source, dict(whole(base)))
    for kind in kinds:
        try:
            MUTATIONS[kind](case)
        except Exception:  # an earlier one has left nothing that it could spoil
            if len(kinds) == 1:
                raise
    return case


def write(case: Case, base: Base, folder: Path) -> tuple[Path, Path]:
    """Write the case below `folder`; the checkpoint's path, and the folder that nothing may be read outside of."""
    root = path = folder / "inside"
    if base.storage == "hub":
        root = root / "models--a--b"
        path = root / "snapshots" / "0123"
        blobs = root / "blobs"
        blobs.mkdir(parents=True)
    path.mkdir(parents=True)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.safetensors").write_bytes(whole(BASES[0])["model.safetensors"])
    (outside / "secret.json").write_bytes(whole(BASES[0])[CONFIG])
    for number, (name, content) in enumerate(case.files.items()):
        if base.storage == "hub" and name not in case.links:
            (blobs / f"{number:040x}").write_bytes(content)
            (path / name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
        elif name not in case.links:
            (path / name).write_bytes(content)
    for name, target in case.links.items():
        (path / name).symlink_to(target.replace("OUTSIDE", str(outside)))
    for change in case.late:
        change(path)
    return path, root


# -- pieces --------------------------------------------------------------------------------------------------------


def split(content: bytes) -> tuple[bytes, bytes]:
    """The header's text and the data, as far as they can be told."""
    length = min(int.from_bytes(content[:8], "little"), len(content))
    return content[8 : 8 + length], content[8 + length :]


_NUMBERS = (
    0, 1, -1, 2, 7, 8, 31, 127, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**30, 10**400, 1.5, 128.0, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
_TEXTS = (
    "", ".", "..", "F16", "I32", "i32", "awq", "gptq_v2", "re:(a+)+$", "re:" + "(x*)*" * 20, "re:[", "re:.*", "\0",
    "\ud800", "é", "x" * 5000, "a." * 3000, "__metadata__", "\x1b[2J", "re:" + "a{1,60000}" * 3, "-1", "4", "True",
)  # fmt: skip


def json_value(source: random.Random, depth: int = 3) -> Any:
    """Anything that JSON, as Python's module writes it, can hold."""
    kind = source.randrange(8 if depth else 5)
    if kind < 2:
        return source.choice(_NUMBERS)
    if kind == 2:
        return source.choice(_TEXTS)
    if kind < 5:
        return source.choice((None, True, False, [], {}))
    count = source.randrange(4)
    if kind == 5:
        return {source.choice(_TEXTS): json_value(source, depth - 1) for _ in range(count)}
    if kind == 6:
        return [json_value(source, depth - 1) for _ in range(count)]
    return [source.choice(_NUMBERS[:20])] * source.choice((1, 2, 3, 64, 65, 2000))


def _deep(source: random.Random) -> bytes:
    depth = source.choice((10, 500, 1200, 100_000))
    if source.random() < 0.1:
        return b"1" * 5000  # more digits than Python converts
    opening, closing = source.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"b":', b"}]")))
    return opening * depth + b"1" + (closing * depth if source.random() < 0.7 else b"")


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = one.keys() if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def _edited(source: random.Random, text: bytes) -> bytes:
    """A JSON text with some of its values replaced, removed, renamed or swapped."""
    value = json.loads(text)
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        spots = _spots(value)
        if not spots:
            break
        container, key = source.choice(spots)
        action = source.randrange(6)
        if action < 3:
            container[key] = json_value(source)
        elif action == 3:
            del container[key]
        elif action == 4 and isinstance(container, dict):
            container[source.choice((*_TEXTS, *container))] = container.pop(key)
        else:
            other, place = source.choice(spots)
            if other is not container:
                container[key] = json.loads(json.dumps(other[place]))
    return json.dumps(value).encode()


def _flipped(source: random.Random, content: bytes, start: int, stop: int) -> bytes:
    changed = bytearray(content)
    for _ in range(source.choice((1, 2, 8, 64))):
        if start < min(stop, len(changed)):
            changed[source.randrange(start, min(stop, len(changed)))] ^= 1 << source.randrange(8)
    return bytes(changed)


# -- mutations -----------------------------------------------------------------------------------------------------

MUTATIONS: dict[str, Callable[[Case], None]] = {}


def mutation(function: Callable[[Case], None]) -> Callable[[Case], None]:
    MUTATIONS[function.__name__] = function
    return function


def on_file(suffix: str) -> Callable[[Callable[[Case, str], None]], Callable[[Case], None]]:
    """A mutation of one file with this suffix; without one, nothing happens."""

    def decorate(function: Callable[[Case, str], None]) -> Callable[[Case], None]:
        def mutate(case: Case) -> None:
            name = case.pick(suffix)
            if name is not None:
                function(case, name)

        mutate.__name__ = function.__name__
        return mutation(mutate)

    return decorate


@on_file(".safetensors")
def header_bits(case: Case, name: str) -> None:
    header, _ = split(case.files[name])
    case.files[name] = _flipped(case.random, case.files[name], 0, 8 + len(header))


@on_file(".safetensors")
def header_length(case: Case, name: str) -> None:
    size = len(case.files[name])
    near = [size, size - 8, size - 7, 2**63, 2**64 - 1, 100_000_000, 100_000_001, 0, 1, 2, 8]
    length = case.random.choice((*near, case.random.getrandbits(64), case.random.randrange(size + 1)))
    case.files[name] = max(length, 0).to_bytes(8, "little") + case.files[name][8:]


@on_file(".safetensors")
def header_json(case: Case, name: str) -> None:
    header, data = split(case.files[name])
    case.files[name] = join(_edited(case.random, header), data)


@on_file(".safetensors")
def header_spaces(case: Case, name: str) -> None:
    """Valid: the format allows spaces behind the header."""
    header, data = split(case.files[name])
    case.files[name] = join(header + b" " * case.random.randrange(64), data)


@on_file("")
def duplicate_keys(case: Case, name: str) -> None:
    """A key of an object once more, with the same value or another."""
    content = case.files[name]
    text, data = split(content) if name.endswith(".safetensors") else (content, b"")
    whole = json.loads(text)
    inner = [container[key] for container, key in _spots(whole)]
    objects = [one for one in (whole, *inner) if isinstance(one, dict)]
    chosen = case.random.choice([one for one in objects if one] or [{"a": 1}])
    key = case.random.choice(list(chosen))
    value = chosen[key] if case.random.random() < 0.5 else json_value(case.random)
    once = json.dumps(chosen).encode()
    twice = once[:-1] + b", " + json.dumps({key: value}).encode()[1:]
    text = json.dumps(whole).encode().replace(once, twice, 1)
    case.files[name] = join(text, data) if name.endswith(".safetensors") else text


@on_file("")
def nested_junk(case: Case, name: str) -> None:
    """A value, or all of it, becomes deeply nested."""
    content = case.files[name]
    text, data = split(content) if name.endswith(".safetensors") else (content, b"")
    mark = text.find(b":", case.random.randrange(len(text) + 1))
    if mark < 0 or case.random.random() < 0.3:
        text = b'{"a": ' + _deep(case.random) + b"}" if case.random.random() < 0.5 else _deep(case.random)
    else:
        end = min(each for each in (text.find(b",", mark), text.find(b"}", mark), len(text)) if each >= 0)
        text = text[: mark + 1] + _deep(case.random) + text[end:]
    case.files[name] = join(text, data) if name.endswith(".safetensors") else text


@on_file("")
def no_utf8(case: Case, name: str) -> None:
    content = case.files[name]
    text, data = split(content) if name.endswith(".safetensors") else (content, b"")
    bad = case.random.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\\ud800", b"\\u0000", b"\xef\xbb\xbf"))
    place = case.random.choice((0, text.find(b'"') + 1, case.random.randrange(len(text) + 1)))
    text = text[:place] + bad + text[place:]
    case.files[name] = join(text, data) if name.endswith(".safetensors") else text


@on_file("")
def truncated(case: Case, name: str) -> None:
    size = len(case.files[name])
    case.files[name] = case.files[name][: case.random.choice((size - 1, size // 2, 8, case.random.randrange(size + 1)))]


@on_file("")
def extended(case: Case, name: str) -> None:
    more = case.random.choice((b"\0", b" ", b"}", case.random.randbytes(100), b"\0" * 100_000))
    case.files[name] += more


@on_file("")
def zero_length(case: Case, name: str) -> None:
    case.files[name] = b""


@on_file("")
def missing(case: Case, name: str) -> None:
    del case.files[name]


@on_file("")
def random_bytes(case: Case, name: str) -> None:
    case.files[name] = case.random.randbytes(case.random.choice((1, 7, 8, 9, 100, 5000)))


@on_file(".safetensors")
def offsets(case: Case, name: str) -> None:
    """Overlapping, reversed, shifted, huge or swapped offsets."""

    def change(entries: list[dict[str, Any]]) -> None:
        one, other = case.random.choice(entries), case.random.choice(entries)
        begin, end = one["data_offsets"]
        shift = case.random.choice((1, -1, 4, 64, end - begin, 2**31, 2**40, 2**63))
        one["data_offsets"] = case.random.choice((
            [begin + shift, end + shift], [begin, end + shift], [end, begin], list(other["data_offsets"]),
            [begin - shift, end], [2**63, 2**63 + end - begin], [0, 2**64 - 1],
        ))  # fmt: skip

    _change_entries(case, name, change)


@on_file(".safetensors")
def dtypes(case: Case, name: str) -> None:
    """Another element type; half of the time the shape is made to fit, so that the file stays valid."""

    def change(entries: list[dict[str, Any]]) -> None:
        one = case.random.choice(entries)
        nbytes = one["data_offsets"][1] - one["data_offsets"][0]
        one["dtype"] = case.random.choice((*_ITEMSIZES, "F4", "F6_E2M3", "F8_E8M0", "C64", "U16", "f16", "", "I4", "X"))
        if case.random.random() < 0.5 and one["shape"]:
            rest = int(np.prod(one["shape"][:-1], dtype=object)) or 1
            one["shape"][-1] = nbytes // (_ITEMSIZES.get(one["dtype"], 1) * rest)

    _change_entries(case, name, change)


@on_file(".safetensors")
def shapes(case: Case, name: str) -> None:
    """Another shape of the same number of elements, or not."""

    def change(entries: list[dict[str, Any]]) -> None:
        one = case.random.choice(entries)
        shape = one["shape"]
        count = int(np.prod(shape, dtype=object))
        one["shape"] = case.random.choice((
            shape[::-1], [count], [1, *shape], [*shape, 1], [count // 2, 2], [2, count // 2], [0, *shape], [], [0, 0],
            [2**32, 2**32], [2**62, 4], [count, 2**64, 0], [1] * 65 + [count], [count * 2], [2, *shape],
        ))  # fmt: skip

    _change_entries(case, name, change)


def _change_entries(case: Case, name: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    header, data = split(case.files[name])
    found = json.loads(header)
    change([entry for key, entry in found.items() if key != "__metadata__"])
    case.files[name] = join(json.dumps(found).encode(), data)


@on_file(".safetensors")
def tensors(case: Case, name: str) -> None:
    """A file that is valid: tensors are dropped, renamed, doubled, cut to fewer rows, or given junk data."""
    header, data = split(case.files[name])
    found = json.loads(header)
    held = {
        key: (entry["dtype"], list(entry["shape"]), data[slice(*entry["data_offsets"])])
        for key, entry in found.items() if key != "__metadata__"
    }  # fmt: skip
    for _ in range(case.random.choice((1, 1, 3))):
        if not held:
            break
        key = case.random.choice(list(held))
        dtype, shape, raw = held[key]
        action = case.random.randrange(6)
        if action == 0:
            del held[key]
        elif action == 1:
            held[_renamed(case.random, key)] = held.pop(key)
        elif action == 2:
            held[_renamed(case.random, key)] = held[key]
        elif action == 3 and shape and shape[0] > 1:
            rows = case.random.choice((1, shape[0] // 2, shape[0] - 1))
            held[key] = (dtype, [rows, *shape[1:]], raw[: len(raw) // shape[0] * rows])
        elif action == 4:
            held[key] = (dtype, shape, case.random.randbytes(len(raw)))
        else:
            held[key] = (dtype, shape, case.random.choice((b"\0", b"\xff", b"\x7f\x7c")) * len(raw))
            held[key] = (dtype, shape, held[key][2][: len(raw)])
    made, chunks, reached = {}, [], 0
    for key, (dtype, shape, raw) in held.items():
        made[key] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, reached + len(raw)]}
        reached += len(raw)
        chunks.append(raw)
    case.files[name] = join(json.dumps(made).encode(), b"".join(chunks))
    if INDEX in case.files and case.random.random() < 0.7:
        _reindex(case)


def _renamed(source: random.Random, key: str) -> str:
    module, _, part = key.rpartition(".")
    parts = ("qweight", "qzeros", "scales", "g_idx", "bias", "weight", "B", "s", "scaled_zeros", "weight_packed",
             "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "pre_quant_scale", "")  # fmt: skip
    return source.choice((f"{module}.{source.choice(parts)}", source.choice(parts), f"other.{part}", f"{key}.{part}"))


def _reindex(case: Case) -> None:
    """Make the index say what the shards hold."""
    where = {}
    for name, content in case.files.items():
        if name.endswith(".safetensors"):
            try:
                where |= dict.fromkeys(json.loads(split(content)[0]), name)
            except (ValueError, RecursionError):
                continue
    where.pop("__metadata__", None)
    case.files[INDEX] = json.dumps({"weight_map": where}).encode()


@on_file(".safetensors")
def data_bits(case: Case, name: str) -> None:
    header, _ = split(case.files[name])
    case.files[name] = _flipped(case.random, case.files[name], 8 + len(header), len(case.files[name]))


@on_file(INDEX)
def index_json(case: Case, name: str) -> None:
    case.files[name] = _edited(case.random, case.files[name])


@on_file(INDEX)
def index_entries(case: Case, name: str) -> None:
    """Entries that point nowhere, outside, to what is no file, or to another file."""
    found = json.loads(case.files[name])
    where = found["weight_map"]
    keys = list(where.keys())
    targets = (
        "nowhere.safetensors", "../outside/secret.safetensors", "../../../../outside/secret.safetensors",
        "/etc/passwd", "/dev/zero", "/proc/self/environ", "sub/model.safetensors", "a\\b.safetensors", "", ".", "..",
        "dir.safetensors", "pipe.safetensors", "link.safetensors", "zero.safetensors", "x\0.safetensors",
        "n" * 300 + ".safetensors", CONFIG, INDEX, ".safetensors", "\ud800.safetensors", "~/x.safetensors",
        *sorted(case.files), None, 3, [], {"a": 1},
    )  # fmt: skip
    for _ in range(case.random.choice((1, 1, 4))):
        key = case.random.choice(keys) if keys and case.random.random() < 0.9 else case.random.choice(_TEXTS)
        where[key] = case.random.choice(targets)
    case.files[name] = json.dumps(found).encode()
    case.late.append(_odd_files)


def _odd_files(path: Path) -> None:
    """A directory, a pipe, a device and a link to the outside, under names that an index may give."""
    if not (path / "dir.safetensors").exists():
        (path / "dir.safetensors").mkdir()
        os.mkfifo(path / "pipe.safetensors")
        (path / "zero.safetensors").symlink_to("/dev/zero")
        (path / "link.safetensors").symlink_to(path.parent / "outside" / "secret.safetensors")


@on_file("")
def symlinks(case: Case, name: str) -> None:
    """A file becomes a link: outside, into a loop, to nothing, to a device."""
    outside = "OUTSIDE/secret.safetensors" if name.endswith(".safetensors") else "OUTSIDE/secret.json"
    case.links[name] = case.random.choice(
        (outside, outside, name, "nothing", "/dev/zero", "/dev/stdin", "/proc/self/mem", ".", "..", "/etc/hostname",
         "/proc/self/fd/0", "/dev/tty")
    )  # fmt: skip


@on_file("")
def no_regular_file(case: Case, name: str) -> None:
    """A file becomes a pipe or a directory."""
    make = case.random.choice((os.mkfifo, os.mkdir))

    def change(path: Path) -> None:
        if not (path / name).is_dir():
            (path / name).unlink(missing_ok=True)
            make(path / name)

    case.late.append(change)


@on_file(".safetensors")
def sparse(case: Case, name: str) -> None:
    """A file that is huge and takes no room, with a header that says so, or not."""
    size = case.random.choice((1 << 30, 1 << 33, 1 << 36))
    header, _ = split(case.files[name])
    found = json.loads(header)
    key = case.random.choice([key for key in found if key != "__metadata__"])
    if case.random.random() < 0.7:  # as large as it says
        rows = size // 4
        found[key] = {"dtype": "I32", "shape": [rows // 1024, 1024], "data_offsets": [0, size]}
        found = {key: found[key]}
    text = json.dumps(found).encode()
    content = join(text, b"")
    case.files[name] = content
    if INDEX in case.files and case.random.random() < 0.7:
        _reindex(case)

    def change(path: Path) -> None:
        file = path / name
        if file.is_file() and os.path.realpath(file).startswith(os.path.realpath(path.parent.parent)):
            os.truncate(file, len(content) + size)

    case.late.append(change)


@on_file(".json")
def config_types(case: Case, name: str) -> None:
    """JSON of another type than an object, or an object where another type must be."""
    value = case.random.choice(([], "text", None, 3, True, [{}], {}, 1.5, {"quantization_config": []}))
    if case.random.random() < 0.5:
        value = {
            case.random.choice(("quantization_config", "weight_map", "compression_config")): json_value(case.random)
        }
    case.files[name] = json.dumps(value).encode()


@on_file(".json")
def config_json(case: Case, name: str) -> None:
    case.files[name] = _edited(case.random, case.files[name])


_SETTINGS: dict[str, tuple[Any, ...]] = {
    "quant_method": ("awq", "gptq", "compressed-tensors", "modelopt", "bitsandbytes", "AWQ"),
    "bits": (4, 8, 3, "4", 4.0, True), "w_bit": (4, 8), "group_size": (-1, 16, 32, 64, 128, 256, 0, -2, 2**70, 96),
    "q_group_size": (-1, 64, 0), "version": ("gemm", "GEMV", "gemv_fast", "marlin", "exllama", ""),
    "zero_point": (True, False, None), "backend": ("llm-awq", "autoawq"), "sym": (True, False),
    "desc_act": (True, False, "yes"), "checkpoint_format": ("gptq", "gptq_v2", "marlin", "other"),
    "dynamic": ({}, {"-:x": {}}, {"+:x": {"bits": 8}}), "ignore": (["re:(a+)+$"], ["re:["], ["lm_head"], [3]),
    "modules_to_not_convert": (["up_proj"], ["proj"], ["re:(.*)*x"], [None], None, ["a"] * 3000),
    "format": ("pack-quantized", "int-quantized", "mixed-precision"), "num_bits": (4, 8), "strategy": ("channel", "x"),
    "symmetric": (True, False), "actorder": ("group", "weight", True, None), "targets": (["Linear"], ["re:.*"], []),
    "num_attention_heads": (0, -1, 2**70, "4"), "text_config": ({}, [], None), "quant_algo": ("W4A16_AWQ",),
}  # fmt: skip


@on_file(".json")
def settings(case: Case, name: str) -> None:
    """Settings that exist, with values that are wrong, contradict the headers, or are right."""
    found = json.loads(case.files[name])
    for _ in range(case.random.choice((1, 1, 2, 4))):
        key = case.random.choice(list(_SETTINGS))
        places = [container for container, inner in _spots(found) if inner == key and isinstance(container, dict)]
        inner = found.get("quantization_config") if isinstance(found, dict) else None
        places += [one for one in (inner, found) if isinstance(one, dict)][:1]
        if places:
            case.random.choice(places)[key] = case.random.choice(_SETTINGS[key])
    case.files[name] = json.dumps(found).encode()


@on_file(".safetensors")
def many(case: Case, name: str) -> None:
    """Thousands of small tensors with the names of layers, and as many entries in the lists of the configuration."""
    header, data = split(case.files[name])
    count = case.random.choice((300, 300, 300, 3000, 12_000))
    part = case.random.choice(("qweight", "weight", "scales", "weight_packed", "bias"))
    module = case.random.choice(("model.layers.{}.mlp.up_proj", "{}", "a{}" + ".b" * 30, "m.experts.{}.x" + "y" * 150))
    empty = {"dtype": "F16", "shape": [0], "data_offsets": [len(data), len(data)]}
    found = json.loads(header)
    found |= {f"{module.format(number)}.{part}": empty for number in range(count)}
    case.files[name] = join(json.dumps(found).encode(), data)
    if INDEX in case.files:
        _reindex(case)
    if CONFIG in case.files and case.random.random() < 0.5:
        pattern = case.random.choice(("re:.*layers.{}.*x", "m.experts.{}", "layers.{}.mlp", "{}", "re:{}"))
        names = [pattern.format(number) for number in range(count)]
        found = json.loads(case.files[CONFIG])
        inner = found["quantization_config"]
        inner[case.random.choice(("ignore", "modules_to_not_convert"))] = names
        groups = inner.get("config_groups")
        if groups and case.random.random() < 0.5:
            groups["group_1"] = {**groups["group_0"], "targets": names}
        case.files[CONFIG] = json.dumps(found).encode()


@mutation
def other_files(case: Case) -> None:
    """More files: pickles, ModelOpt's configuration, a second index, files without one."""
    name, content = case.random.choice((
        ("pytorch_model.bin", b"\x80\x04."), ("hf_quant_config.json", b'{"quantization": {"quant_algo": "W4A16_AWQ"}}'),
        ("other.safetensors.index.json", b"{}"), (INDEX, b'{"weight_map": {"a": "b.safetensors"}}'),
        ("more.safetensors", join(b"{}", b"")), ("quant_config.json", b"[]"), ("quantize_config.json", b'{"bits": 4}'),
        ("model.safetensors", join(b"{}", b"")),
    ))  # fmt: skip
    case.files[name] = content
    if case.random.random() < 0.3:
        case.files.pop(CONFIG, None)

"""What is written is read back; what is damaged, foreign or hostile is refused in one sentence."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from accel.numerics import load_recording
from accel.numerics.storage import surroundings
from accel.numerics.storage.entries import (
    Check,
    End,
    Place,
    Ref,
    Skipped,
    Source,
    Update,
)
from accel.numerics.storage.lines import LONGEST
from accel.numerics.storage.manifest import Revision, manifest_from
from accel.numerics.storage.writer import Writer
from accel_kernels.sketch import sketch
from tests.numerics.numerics_recordings import (
    MANIFEST,
    WEIGHT,
    X,
    change_manifest,
    index_of,
    kept_and_read,
    lines_in,
    manifest_of,
    the_step,
    write_lines,
    write_recording,
    write_step,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "r"
    write_recording(path)
    return path


@pytest.fixture
def recording(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "r"))


def test_a_recording_comes_back(recording: Path) -> None:
    opened = load_recording(recording)
    assert list(opened.ranks) == [0]
    assert opened.manifest == MANIFEST.finished(None)
    assert list(opened.ranks[0].steps) == [0]
    step = opened.ranks[0].steps[0]
    assert [str(one.key) for one in step.operators] == [
        "forward:layers.0/mm#0", "forward:layers.0/mm#1",
    ]  # fmt: skip
    assert step.operators[1].place == Place("train.py", 7, "main")
    assert step.values[2].sketch == sketch(X @ WEIGHT)  # from the later line
    assert step.values[3].base == 2
    assert step.producers == {2: 0, 4: 1, 5: 1}
    assert step.by_key[step.operators[0].key] is step.operators[0]
    assert step.sources[1] == Source(1, "parameter", "layers.0.weight")
    assert step.adjoints == {1: 4}
    assert step.checks == {1: Check(1, {"R": 1.5})}
    assert step.calls[0].arguments == {"x": Ref(0), "flag": True}
    assert step.modules[0].outputs == {"0": 4}
    assert step.updates == (Update("layers.0.weight", "exp_avg", 4),)
    assert step.skipped == (Skipped("layers.1", "it is compiled"),)
    assert step.end == End(2, 0)
    assert step.dropped_line is None
    assert torch.equal(step.tensor(0), X)
    assert [step.has_tensor(one) for one in range(3)] == [True, True, False]
    assert opened.verify() == 2
    assert opened.missing_ranks == ()


def test_what_was_not_kept_or_not_recorded_is_said(recording: Path) -> None:
    step = the_step(recording)
    with pytest.raises(ValueError, match=r"value 2 of step 0 were not kept: record .* 'full'"):
        step.tensor(2)
    with pytest.raises(ValueError, match="step 0 has no value 77"):
        step.tensor(77)
    with pytest.raises(KeyError):
        load_recording(recording).ranks[0].steps[3]


# --- manifests ---------------------------------------------------------------------------------


def manifest_setter(**changes: Any) -> Callable[[Path], None]:
    return lambda path: change_manifest(path, **changes)


def overwrite(where: Callable[[Path], Path], content: bytes) -> Callable[[Path], object]:
    return lambda path: where(path).write_bytes(content)


def link_to(path: Path) -> None:
    moved = path.rename(path.parents[3] / f"moved-{path.name}")
    path.symlink_to(moved)


MANIFESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: manifest_of(p).unlink(), "is missing"),
    "no JSON": (overwrite(manifest_of, b"{"), "cannot be read: Expecting"),
    "no text": (overwrite(manifest_of, b"\xff\xfe"), "cannot be read: .*decode"),
    "a list": (overwrite(manifest_of, b"[]"), "object is expected, got list"),
    "deep": (overwrite(manifest_of, b"[" * 10**5), "nested too deeply"),
    "twice": (overwrite(manifest_of, b'{"schema":2,"schema":2}'), "says 'schema' twice"),
    "NaN": (overwrite(manifest_of, b'{"schema":NaN}'), "NaN is no JSON"),
    "large": (overwrite(manifest_of, b" " * (2**20 + 1)), "is larger than 1048576 bytes"),
    "other schema": (manifest_setter(schema=99), "schema 99 and this accel"),
    "schema 1": (manifest_setter(schema=1), "schema 1 and this accel"),
    "no schema": (manifest_setter(schema=None), "schema None"),
    "float schema": (manifest_setter(schema=2.0), "schema 2.0"),
    "versions": (manifest_setter(versions=["1"]), "versions must be an object"),
    "version": (manifest_setter(versions={"torch": 2}), "torch must be text, got 2"),
    "mode": (manifest_setter(numerics_mode=3), "numerics_mode must be an object"),
    "infinite mode": (manifest_setter(numerics_mode={"a": 1e999}), "Infinity is no JSON"),
    "seed": (manifest_setter(seed=True), "seed must be an integer or null, got True"),
    "huge seed": (manifest_setter(seed=2**65), "must be within 2\\*\\*64"),
    "arguments": (manifest_setter(arguments=[1]), "arguments must hold texts, got 1"),
    "revision": (manifest_setter(revision={"commit": 3}), "commit must be text"),
    "dirty": (manifest_setter(revision={"commit": "a", "dirty": 3}), "dirty must be true"),
    "level": (manifest_setter(level="all"), "level must be one of sketch, full, check, got"),
    "only": (manifest_setter(only="x"), "only must be a list"),
    "steps": (manifest_setter(steps=None), "steps must be text"),
    "rank": (manifest_setter(rank=-1), "rank must be an integer from 0"),
    "rank beyond world": (manifest_setter(rank=5), "rank must be below world, got 5 and 1"),
    "another rank": (manifest_setter(rank=1, world=2), "it is rank 1 and lies in the directory"),
    "world": (manifest_setter(world=0), "rank must be below world"),
    "replica": (manifest_setter(data_parallel=[2, 2]), "an index below its count"),
    "replicas": (manifest_setter(data_parallel=[1]), "data_parallel must be an index and a"),
    "complete": (manifest_setter(complete="yes"), "complete must be true or false, got 'yes'"),
    "half a pair": (manifest_setter(platform="\ud800"), "half a surrogate pair"),
    "link": (lambda p: link_to(manifest_of(p)), "is a symbolic link"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_bad_manifest_is_one_clear_error(recording: Path, name: str) -> None:
    spoil, words = MANIFESTS[name]
    spoil(recording)
    with pytest.raises(ValueError, match=words) as caught:
        load_recording(recording)
    assert_clear(caught.value, manifest_of(recording))


def assert_clear(error: ValueError, file: Path) -> None:
    """One line that names the file and says what to do next."""
    text = str(error)
    assert str(file) in text
    assert "record it again or copy the directory again" in text
    assert "\n" not in text
    assert len(text) < 600


def test_a_manifest_comes_back() -> None:
    for manifest in (MANIFEST, replace(MANIFEST, seed=None, revision=None, data_parallel=None)):
        assert manifest_from(manifest.to_text().encode()) == manifest
    broken = MANIFEST.finished(RuntimeError("out of memory"))
    back = manifest_from(broken.to_text().encode())
    assert (back.complete, back.error) == (False, "RuntimeError: out of memory")


def test_the_surroundings_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    model = torch.nn.Linear(2, 2)
    outside = surroundings.manifest_for(model, level="sketch", steps="every 200")
    assert outside.revision is None
    assert outside.seed == torch.initial_seed()
    assert outside.versions["torch"] == torch.__version__
    assert outside.device["torch_device"] == "cpu"
    assert outside.arguments == tuple(sys.argv)
    assert manifest_from(outside.to_text().encode()) == outside
    git("init", "-q")
    assert surroundings.revision() is None  # no commit yet
    (tmp_path / "train.py").write_text("1")
    git("add", "train.py")
    git("commit", "-q", "-m", "first")
    found = surroundings.revision()
    assert found is not None
    assert len(found.commit) == 40
    assert found.dirty is False
    (tmp_path / "train.py").write_text("2")
    assert surroundings.revision() == Revision(found.commit, True)
    monkeypatch.setenv("PATH", "")
    assert surroundings.revision() is None


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="on the meta device and computes nothing"):
        surroundings.manifest_for(torch.nn.Linear(2, 2, device="meta"), level="full", steps="0")


# --- indices -----------------------------------------------------------------------------------


def setter(of: str = "operator", nth: int = 0, /, **changes: Any) -> Callable[[Path], None]:
    """Change one line of a kind."""

    def change(path: Path) -> None:
        found = lines_in(path)
        [line for line in found if line["kind"] == of][nth].update(changes)
        write_lines(path, found)

    return change


def drop(kind: str, nth: int = 0) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        found = lines_in(path)
        found.remove([line for line in found if line["kind"] == kind][nth])
        write_lines(path, found)

    return change


def repeat(of: str, /, **changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        found = lines_in(path)
        line = next(line for line in found if line["kind"] == of)
        found.insert(len(found) - 1, line | changes)
        write_lines(path, found)

    return change


def cut(count: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        index_of(path).write_bytes(index_of(path).read_bytes()[:-count])

    return change


def append(text: bytes) -> Callable[[Path], object]:
    return lambda path: index_of(path).write_bytes(index_of(path).read_bytes() + text)


def in_text(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda path: index_of(path).write_bytes(index_of(path).read_bytes().replace(old, new))


def sketch_with(**numbers: float) -> str:
    """A sketch of six numbers in which some of the 72 are others."""
    changed = np.frombuffer(sketch(X).raw, "<f8").copy()
    for name, number in numbers.items():
        changed[int(name[1:])] = number
    return base64.b64encode(changed.tobytes()).decode()


def argument(value: Any) -> Callable[[Path], None]:
    return setter(arguments={"x": value})


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


INDICES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: index_of(p).unlink(), "is missing"),
    "a directory": (lambda p: (index_of(p).unlink(), index_of(p).mkdir()), "no plain file"),
    "a link": (lambda p: link_to(index_of(p)), "is a symbolic link"),
    "truncated line": (cut(5), "is truncated: the manifest says"),
    "truncated at a line": (drop("end"), "is truncated: the manifest says"),
    "empty": (overwrite(index_of, b""), "is truncated: the manifest says"),
    "a line taken out": (
        lambda p: overwrite(index_of, b"".join(index_of(p).read_bytes().splitlines(True)[1:]))(p),
        r"line \d+ is damaged: it says that \d+ lines come before it, and \d+ do",
    ),
    "after the end": (append(b"{}\n"), "it comes after the end of the step"),
    "half a line after the end": (append(b"{"), "it comes after the end of the step"),
    "no JSON": (overwrite(index_of, b"{\n"), "line 1 is damaged: Expecting"),
    "no text": (overwrite(index_of, b'"\xff"\n'), "line 1 is damaged: .*decode"),
    "deep": (overwrite(index_of, b"[" * 10**5 + b"\n"), "line 1 is damaged: it is nested too"),
    "long": (overwrite(index_of, b" " * (LONGEST + 9) + b"\n"), "line 1 .* is longer than"),
    "a number": (overwrite(index_of, b"3\n"), "object is expected, got int"),
    "many digits": (overwrite(index_of, b"3" * 9999 + b"\n"), "line 1 is damaged: .*digits"),
    "twice": (overwrite(index_of, b'{"kind":"end","kind":"end"}\n'), "says 'kind' twice"),
    "NaN": (overwrite(index_of, b'{"kind":NaN}\n'), "NaN is no JSON"),
    "kind": (setter(kind="pickle"), "unknown kind 'pickle'"),
    "kind of kind": (setter(kind=["operator"]), "unknown kind"),
    "id": (setter(id=-1), "id must be an integer from 0 to below 2\\*\\*62, got -1"),
    "huge id": (setter(id=2**62), "id must be an integer"),
    "immense id": (setter(id=10**4000), "id must be an integer .* got a number of 13288 bits"),
    "float id": (setter(id=0.5), "id must be an integer"),
    "true id": (setter(id=True), "id must be an integer"),
    "phase": (setter(phase="evaluation"), "phase must be one of forward, .* got 'evaluation'"),
    "module": (setter(module=7), "module must be text, got 7"),
    "call": (setter(call="0"), "call must be an integer"),
    "origin": (setter(origin=None), "origin must be text, got None"),
    "op": (setter(op=None), "op must be text, got None"),
    "name": (setter(name={}), "name must be text"),
    "half a pair": (setter(module="\ud800"), "half a surrogate pair is no text"),
    "arguments": (setter(arguments=[]), "arguments must be an object"),
    "strange argument": (argument({"pickle": "x"}), "argument must be plain, .*v.* or one of"),
    "two-fold argument": (argument({"v": 0, "dtype": "x"}), "argument must be plain"),
    "reference": (argument({"v": -1}), "v must be an integer from 0"),
    "infinite reference": (in_text(b'"v":0', b'"v":1e999'), "v must be an integer from 0"),
    "infinite argument": (in_text(b'{"v":0}', b"1e999"), "a number must be finite, got inf"),
    "immense argument": (argument(2**65), "within 2\\*\\*64"),
    "deep argument": (argument(nested(40)), "nested more than 32 deep"),
    "dtype argument": (argument({"dtype": 3}), "dtype must be text"),
    "outputs": (setter(outputs={"a": 1}), "outputs must be a list"),
    "output": (setter(outputs=["a"]), "outputs must be an integer"),
    "writes": (setter(writes=[1]), "writes must be an object"),
    "written": (setter(writes={"self": 1}), "self must be a list"),
    "place": (setter(place=3), "place 3 has no line before this one"),
    "place's number": (setter("place", id=3), "place 3 must be number 0"),
    "place's line": (setter("place", line="x"), "line must be an integer"),
    "autocast": (setter(autocast=3), "autocast must be text"),
    "same id": (repeat("operator", k=9), "operator 0 was there before, in line"),
    "same key": (repeat("operator", id=9), "operator 0 has the same name: forward:layers.0/mm#0"),
    "no such input": (argument({"v": 99}), "speaks of value 99, which has no line"),
    "no such output": (setter(outputs=[99]), "speaks of value 99, which has no line"),
    "no such write": (setter(writes={"a": [99]}), "speaks of value 99, which has no line"),
    "made later": (argument({"v": 4}), "operator 1 makes value 4, which an earlier operator read"),
    "shape": (setter("value", shape="4"), "shape must be a list"),
    "negative shape": (setter("value", shape=[-4]), "shape must hold integers from 0, got -4"),
    "many dimensions": (setter("value", shape=[1] * 65), "at most 64 sizes"),
    "huge shape": (setter("value", shape=[2**61, 8]), "sketch is of 6 numbers and the shape has"),
    "dtype": (setter("value", dtype=3), "dtype must be text"),
    "unknown dtype": (setter("value", dtype="float99"), "one that torch names, .* got 'float99'"),
    "not a dtype": (setter("value", dtype="../../etc"), "one that torch names, .* got '../../etc'"),
    "sketch": (setter("value", sketch="AAAA"), "sketch must be 576 bytes, got 3"),
    "no base64": (setter("value", sketch="*" * 768), "sketch is no base64"),
    "count": (setter("value", sketch=sketch_with(_71=5)), "is of 5 numbers and the shape has 6"),
    "half a count": (setter("value", sketch=sketch_with(_67=0.5)), "sketch holds 0.5 where a"),
    "endless count": (setter("value", sketch=sketch_with(_70=np.inf)), "sketch holds inf where"),
    "too many NaN": (setter("value", sketch=sketch_with(_67=7)), "sketch contradicts itself"),
    "least": (setter("value", sketch=sketch_with(_64=99)), "sketch contradicts itself"),
    "largest is NaN": (setter("value", sketch=sketch_with(_65=np.nan)), "contradicts itself"),
    "squares": (setter("value", sketch=sketch_with(_66=-1)), "sketch contradicts itself"),
    "blob": (setter("value", blob="../../x"), "blob must be 64 hexadecimal digits"),
    "blob with a newline": (setter("value", blob="a" * 64 + "\n"), "blob must be 64 hexadecimal"),
    "no such base": (setter("value", base=99), "value 0 is a view of value 99, which has no"),
    "its own base": (setter("value", base=0), "value 0 is a view of itself"),
    "bases in a circle": (setter("value", 3, base=3), "is a view of itself"),
    "shard": (setter("value", shard=3), "shard must be an object"),
    "shard outside": (
        setter("value", shard={"shape": [2, 3], "offset": [1, 0]}), "shard must lie in the whole"
    ),
    "shard's shape": (setter("value", shard={"shape": [2], "offset": [0]}), "shard must lie"),
    "partial": (
        setter("value", shard={"shape": [2, 3], "offset": [0, 0], "partial": 1}),
        "partial must be true or false",
    ),
    "skipped": (setter("value", skipped=1), "skipped must be text"),
    "another dtype": (repeat("value", dtype="int8"), "value 0 had another dtype before"),
    "another sketch": (repeat("value", sketch=sketch_with(_1=9)), "had another sketch before"),
    "source": (setter("source", of="magic"), "of must be one of parameter, buffer"),
    "source's value": (setter("source", value=99), "speaks of value 99, which has no line"),
    "module's span": (setter("module", first=3), "first must be at most last, got 3 and 2"),
    "module's phase": (setter("module", phase="backward"), "phase must be one of forward, rec"),
    "module's inputs": (setter("module", inputs={"0": "x"}), "0 must be an integer"),
    "module's outputs": (setter("module", outputs={"0": 99}), "speaks of value 99"),
    "training": (setter("call", training=None), "training must be true or false"),
    "gradients": (setter("call", gradients=1), "gradients must be true or false"),
    "generators": (setter("call", generators={"cpu": 3}), "cpu must be text, got 3"),
    "call's argument": (setter("call", arguments={"x": {"v": 99}}), "speaks of value 99"),
    "call twice": (repeat("call"), "call 0 was there before"),
    "adjoint": (setter("adjoint", of=99), "speaks of value 99, which has no line"),
    "update": (setter("update", value=99), "speaks of value 99, which has no line"),
    "slot": (setter("update", slot=1), "slot must be text"),
    "check": (setter("check", operator=99), "speaks of operator 99, which has no line"),
    "check's fields": (setter("check", fields=[]), "fields must be an object"),
    "check's float": (setter("check", fields={"R": {"float": "many"}}), "float must be inf, -inf"),
    "deep check": (setter("check", fields={"R": nested(40)}), "nested more than 32 deep"),
    "what": (setter("skipped", what=1), "what must be text"),
    "fewer operators": (setter("end", operators=1), "says that 1 operators ran, and 2 have"),
    "dropped": (setter("end", dropped=-1), "dropped must be an integer"),
    "lines": (in_text(b'"lines":', b'"lines":-'), "lines must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDICES)
def test_a_bad_index_is_one_clear_error(recording: Path, name: str) -> None:
    spoil, words = INDICES[name]
    spoil(recording)
    opened = load_recording(recording)
    with pytest.raises(ValueError, match=words) as caught:
        _ = opened.ranks[0].steps[0]
    assert_clear(caught.value, index_of(recording))
    with pytest.raises(ValueError, match=words):
        opened.verify()


def test_a_damaged_step_does_not_hide_the_others(tmp_path: Path) -> None:
    one = Writer(tmp_path / "r", MANIFEST)
    for index in (10, 9):
        step = one.start_step(index)
        write_step(step)
        step.end(End(2, 0))
    one.finish(MANIFEST.finished(None))
    (tmp_path / "r/rank-0/step-9/index.jsonl").write_bytes(b"{\n")
    steps = load_recording(tmp_path / "r").ranks[0].steps
    assert list(steps) == [9, 10]
    assert len(steps[10].operators) == 2
    assert steps[10] is steps[10]
    with pytest.raises(ValueError, match=r"step-9/index\.jsonl: line 1 is damaged"):
        _ = steps[9]


# --- blobs -------------------------------------------------------------------------------------


def blob_of(path: Path) -> Path:
    [blob] = index_of(path).parent.glob("blob-*.safetensors")
    return blob


def flip_a_bit(path: Path) -> None:
    data = bytearray(blob_of(path).read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1  # the first element's first byte
    blob_of(path).write_bytes(data)


def declare(shape: list[int], size: int, real: int) -> Callable[[Path], None]:
    """A blob that claims `size` bytes for one tensor and has `real` of them, in a sparse file."""

    def change(path: Path) -> None:
        digest = lines_in(path)[1]["blob"]
        header = {digest: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        with blob_of(path).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + real)

    return change


BLOBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: blob_of(p).unlink(), "no file of .*step-0 holds tensor"),
    "another name": (
        lambda p: blob_of(p).rename(blob_of(p).parent / "tensors.safetensors"),
        "no file of .*step-0 holds tensor",
    ),
    "empty": (overwrite(blob_of, b""), "is damaged: .*[Hh]eader"),
    "truncated": (lambda p: overwrite(blob_of, blob_of(p).read_bytes()[:-9])(p), "is damaged"),
    "huge header": (overwrite(blob_of, b"\xff" * 64), "is damaged"),
    "pickle": (overwrite(blob_of, b"\x80\x04K\x01."), "is damaged"),
    "huge tensor": (declare([10**12], 4 * 10**12, 16), "is damaged"),
    "huge sparse file": (declare([10**10], 4 * 10**10, 4 * 10**10), r"holds F32 \[10000000000\]"),
    "overflowing shape": (declare([2**62, 8], 24, 24), "is damaged"),
    "other bytes": (flip_a_bit, "has other bytes than recorded"),
    "a link": (lambda p: link_to(blob_of(p)), "is a symbolic link"),
    "a directory": (lambda p: (blob_of(p).unlink(), blob_of_dir(p)), "no plain file"),
    "not in it": (setter("value", blob="0" * 64), "holds tensor 000000000000"),
    "other shape": (
        setter("value", sketch=None, shape=[10**9, 10**9]),
        r"holds F32 \[2, 3\] .* where the index says float32 \[1000000000, ",
    ),
    "turned shape": (setter("value", shape=[3, 2]), r"index says float32 \[3, 2\]"),
    "other dtype": (setter("value", dtype="int32"), "holds F32 .* index says int32 .* is I32"),
    "same size, other name": (setter("value", dtype="float8_e4m3fnuz"), r"which is U8 \[2, 3, 1"),
}  # fmt: skip


def blob_of_dir(path: Path) -> None:
    (index_of(path).parent / "blob-00000.safetensors").mkdir()


@pytest.mark.parametrize("name", BLOBS)
def test_a_bad_blob_is_one_clear_error(recording: Path, name: str) -> None:
    spoil, words = BLOBS[name]
    spoil(recording)
    step = the_step(recording)
    with pytest.raises(ValueError, match=words) as caught:
        step.tensor(0)
    assert str(recording) in str(caught.value)
    assert len(str(caught.value)) < 700
    with pytest.raises(ValueError, match=words):
        load_recording(recording).verify()


def test_the_same_bytes_under_another_dtype_are_another_tensor(tmp_path: Path) -> None:
    """The digest covers dtype and shape: one cannot be passed off as the other."""
    fnuz = kept_and_read(tmp_path / "r", X.to(torch.float8_e4m3fnuz))
    assert fnuz.dtype == torch.float8_e4m3fnuz
    setter("value", dtype="float8_e5m2fnuz")(tmp_path / "r")
    with pytest.raises(ValueError, match="has other bytes than recorded"):
        the_step(tmp_path / "r").tensor(0)


def test_a_damaged_blob_does_not_hide_the_others(recording: Path) -> None:
    (index_of(recording).parent / "blob-00001.safetensors").write_bytes(b"x")
    assert torch.equal(the_step(recording).tensor(0), X)


# --- directories -------------------------------------------------------------------------------


def test_what_is_no_recording_is_told_apart(recording: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x is no recording: there is no such directory"):
        load_recording(tmp_path / "x")
    with pytest.raises(ValueError, match=r"rank-0 is one rank of a recording: give the directory"):
        load_recording(recording / "rank-0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no directory rank-0, rank-1, … is in it"):
        load_recording(tmp_path / "empty")
    (tmp_path / "old").mkdir()
    shutil.copy(manifest_of(recording), tmp_path / "old")
    with pytest.raises(ValueError, match="an older accel wrote it; record it again"):
        load_recording(tmp_path / "old")


@pytest.mark.parametrize("what", ["rank-0", "rank-0/step-0"])
def test_a_directory_that_is_a_link_is_refused(recording: Path, tmp_path: Path, what: str) -> None:
    moved = (recording / what).rename(tmp_path / "moved")
    (recording / what).symlink_to(moved)
    with pytest.raises(ValueError, match=f"{what} is no directory, or a symbolic link"):
        load_recording(recording)


def test_names_that_are_no_ranks_or_steps_are_left_alone(recording: Path) -> None:
    for name in ("rank-00", "rank--1", "rank-1x", "notes"):
        shutil.copytree(recording / "rank-0", recording / name)
    for name in ("step-01", "step-", "step-1.bak"):
        shutil.copytree(recording / "rank-0/step-0", recording / "rank-0" / name)
    opened = load_recording(recording)
    assert list(opened.ranks) == [0]
    assert list(opened.ranks[0].steps) == [0]


def write_rank(path: Path, rank: int, world: int) -> None:
    one = Writer(path, replace(MANIFEST, rank=rank, world=world))
    step = one.start_step(0)
    write_step(step)
    step.end(End(2, 0))
    one.finish(replace(MANIFEST, rank=rank, world=world).finished(None))


def test_ranks_copied_into_one_directory_are_one_recording(tmp_path: Path) -> None:
    for rank in (0, 2):
        write_rank(tmp_path / f"machine-{rank}", rank, 3)
    whole = tmp_path / "whole"
    for rank in (2, 0):
        shutil.copytree(tmp_path / f"machine-{rank}" / f"rank-{rank}", whole / f"rank-{rank}")
    opened = load_recording(whole)
    assert list(opened.ranks) == [0, 2]
    assert opened.missing_ranks == (1,)
    assert opened.ranks[2].steps[0].rank == 2
    assert opened.verify() == 4


def test_ranks_of_different_runs_are_refused(tmp_path: Path) -> None:
    write_rank(tmp_path / "r", 0, 2)
    write_rank(tmp_path / "r", 1, 3)
    with pytest.raises(ValueError, match=r"says that 3 processes ran and others say 2: rank 1 is"):
        load_recording(tmp_path / "r")


# --- another framework, from docs/recording-format.md alone ------------------------------------


def mixed(number: int, start: int) -> int:
    """The `number`-th of splitmix64's numbers from `start` on."""
    bits = 2**64 - 1
    z = (number * 0x9E3779B97F4A7C15 + start) & bits
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
    return z ^ (z >> 31)


def foreign_sketch(values: np.ndarray[Any, Any]) -> str:
    numbers = [0.0] * 64 + [float("inf"), float("-inf")] + [0.0] * 6
    starts = (0xA4093822299F31D0, 0x082EFA98EC4E6C89, 0x452821E638D01377)
    places = 0
    for index, element in enumerate(values.reshape(-1).astype(np.float64).tolist()):
        numbers[71] += 1
        if not np.isfinite(element):
            kind = 0 if element != element else 1 if element > 0 else 2
            numbers[67 + kind] += 1
            places += mixed(index, starts[kind]) >> 11
            continue
        block, lane = divmod(index, 64)
        negative = mixed(block, 0x243F6A8885A308D3) >> lane & 1
        bucket = lane ^ (mixed(block, 0x13198A2E03707344) >> 58)
        numbers[bucket] += -element if negative else element
        numbers[64] = min(numbers[64], element)
        numbers[65] = max(numbers[65], element)
        numbers[66] += element * element
    numbers[70] = float(places % 2**53)
    return base64.b64encode(np.array(numbers, "<f8").tobytes()).decode()


@pytest.mark.parametrize("strange", [False, True], ids=["finite", "not finite"])
def test_another_framework_can_write_it(tmp_path: Path, strange: bool) -> None:
    values = np.linspace(-3, 7, 300, dtype=np.float32).reshape(20, 15)
    if strange:
        values[3, 4], values[0, 1], values[7, 7], values[9, 9] = np.nan, np.inf, -np.inf, np.nan
    rank = tmp_path / "foreign" / "rank-0"
    step = rank / "step-0"
    step.mkdir(parents=True)
    digest = hashlib.sha256(b"float32 20,15\n" + values.tobytes()).hexdigest()
    save_file({digest: values}, step / "blob-00000.safetensors")
    said = [
        {"kind": "value", "id": 0, "dtype": "float32", "shape": [20, 15],
         "sketch": foreign_sketch(values), "blob": digest},
        {"kind": "module", "module": "dense", "call": 0, "class": "Dense", "phase": "forward",
         "first": 0, "last": 0, "inputs": {}, "outputs": {"0": 0}, "training": True},
    ]  # fmt: skip
    said.append({"kind": "end", "operators": 0, "dropped": 0, "lines": len(said)})
    (step / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    manifest = {
        "schema": 2, "framework": "numpy", "versions": {"numpy": np.__version__},
        "platform": "any", "device": {"chip": "any", "family": "cpu", "torch_device": "cpu"},
        "numerics_mode": {}, "seed": None, "arguments": [], "revision": None, "level": "full",
        "only": [], "steps": "0", "rank": 0, "world": 1, "data_parallel": None,
        "complete": True, "error": None,
    }  # fmt: skip
    (rank / "manifest.json").write_text(json.dumps(manifest))
    opened = load_recording(tmp_path / "foreign")
    read = opened.ranks[0].steps[0]
    assert opened.manifest.framework == "numpy"
    assert read.modules[0].class_name == "Dense"
    ours, theirs = sketch(torch.from_numpy(values)), read.values[0].sketch
    assert theirs is not None
    assert theirs.mask == ours.mask
    assert theirs.numbers[64:66] == ours.numbers[64:66]
    assert theirs.numbers[71] == ours.numbers[71]
    # The order of additions is the writer's own.
    assert np.allclose(theirs.sums, ours.sums, rtol=0, atol=1e-13)
    assert np.isclose(theirs.norm, ours.norm, rtol=1e-14)
    assert torch.equal(read.tensor(0).nan_to_num(), torch.from_numpy(values).nan_to_num())
    assert opened.verify() == 1


# --- damage of any kind ------------------------------------------------------------------------

TOKENS = [
    b"1e999", b"-1", b"null", b"{}", b"[]", b'""', b"NaN", b"9" * 30, b'"\\ud800"', b"true",
    b"1.5", b'{"v":3}', b"\x00", b"\xff",
]  # fmt: skip


def damaged(data: bytes, random: Random) -> bytes:
    """Some bytes are changed, lost or replaced; often a whole JSON value."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed))
        kind = random.randrange(4)
        if kind == 0:
            changed[at] = random.randrange(256)
        elif kind == 1:
            del changed[at : at + random.randrange(1, 20)]
        elif kind == 2:
            changed[at : at + random.randrange(6)] = random.choice(TOKENS)
        elif (colon := changed.find(b":", at)) > 0:
            ends = [changed.find(mark, colon) for mark in (b",", b"}")]
            end = min([end for end in ends if end > 0], default=colon + 1)
            changed[colon + 1 : end] = random.choice(TOKENS)
    return bytes(changed)


def test_any_damage_is_refused_in_one_line_or_does_no_harm(recording: Path) -> None:
    random, refused = Random(1), []
    files = [manifest_of(recording), index_of(recording), blob_of(recording)]
    for _ in range(400):
        file = random.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, random))
        try:
            load_recording(recording).verify()
        except ValueError as error:
            refused.append(str(error))
        file.write_bytes(whole)
    for text in refused:
        assert str(recording) in text
        assert "\n" not in text
        assert len(text) < 900
    assert len(refused) > 350  # the rest changed a text, or a number to another

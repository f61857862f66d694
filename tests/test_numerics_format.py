"""Recordings that are damaged, foreign or hostile, and places that cannot be written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from accel.numerics import Recording, compare, load_recording, record, writer
from accel.numerics.entries import Key
from tests.numerics_zoo import case, made, one_thread, recorded, step, threads  # noqa: F401


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "r"
    with threads(1):
        recorded(path, case("mlp"))
    return path


@pytest.fixture
def recording(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "r"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]


def write_lines(path: Path, changed: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in changed)
    (path / "index.jsonl").write_text(text)


def change_line(path: Path, change: Callable[[dict[str, Any]], None], kind: str = "run") -> None:
    """Change the first forward entry (or line of another kind)."""
    found = lines(path)
    change(next(x for x in found if x["kind"] == kind and x.get("phase") in ("forward", None)))
    write_lines(path, found)


def change_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(json.dumps(manifest))


def read_all(path: Path) -> Recording:
    opened = load_recording(path)
    for entry in [*opened.entries.values(), *opened.truths.values()]:
        opened.tensor(entry)
    return opened


def test_the_untouched_copy_is_read(recording: Path) -> None:
    assert read_all(recording).manifest.complete


MANIFESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: (p / "manifest.json").unlink(), "is missing"),
    "no JSON": (lambda p: (p / "manifest.json").write_text("{"), "cannot be read: Expecting"),
    "no text": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "object is expected, got list"),
    "deep": (lambda p: (p / "manifest.json").write_text("[" * 10**5), "nested too deeply"),
    "other schema": (lambda p: change_manifest(p, schema=99), "schema 99 and this accel"),
    "no schema": (lambda p: change_manifest(p, schema=None), "schema None"),
    "versions": (lambda p: change_manifest(p, versions=["1"]), "its versions must be"),
    "version": (lambda p: change_manifest(p, versions={"torch": 2}), "its versions must be"),
    "mode": (lambda p: change_manifest(p, numerics_mode=3), "its numerics_mode must be"),
    "seed": (lambda p: change_manifest(p, seed=True), "its seed must be of kind int, got True"),
    "arguments": (lambda p: change_manifest(p, arguments=[1]), "its arguments must be"),
    "complete": (lambda p: change_manifest(p, complete="yes"), "its complete must be"),
    "link": (lambda p: link_to(p / "manifest.json"), "is a symbolic link"),
}


def link_to(path: Path) -> None:
    moved = path.rename(path.parent.parent / path.name)
    path.symlink_to(moved)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_bad_manifest_is_one_clear_error(recording: Path, name: str) -> None:
    spoil, words = MANIFESTS[name]
    spoil(recording)
    with pytest.raises(ValueError, match=words) as caught:
        load_recording(recording)
    assert str(recording / "manifest.json") in str(caught.value)


def setter(**changes: Any) -> Callable[[Path], None]:
    return lambda path: change_line(path, lambda line: line.update(changes))


def call_setter(**changes: Any) -> Callable[[Path], None]:
    return lambda path: change_line(path, lambda line: line.update(changes), "call")


def truncate(name: str, count: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        file = path / name
        file.write_bytes(file.read_bytes()[:-count])

    return cut


def drop_a_line(path: Path) -> None:
    write_lines(path, lines(path)[:-1])


INDICES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: (p / "index.jsonl").unlink(), "is missing"),
    "truncated line": (truncate("index.jsonl", 5), r"line \d+ is truncated"),
    "truncated at a line": (drop_a_line, r"has \d+ lines where the manifest says"),
    "no JSON": (lambda p: (p / "index.jsonl").write_text("{\n"), "line 1 is damaged: Expecting"),
    "no text": (lambda p: (p / "index.jsonl").write_bytes(b"\xff\n"), "line 1 is damaged"),
    "deep": (lambda p: (p / "index.jsonl").write_text("[" * 10**5 + "\n"), "nested too deeply"),
    "a number": (lambda p: (p / "index.jsonl").write_text("3\n"), "object is expected, got int"),
    "a link": (lambda p: link_to(p / "index.jsonl"), "is a symbolic link"),
    "kind": (setter(kind="pickle"), "unknown kind 'pickle'"),
    "phase": (setter(phase="optimizer"), "unknown phase 'optimizer'"),
    "module": (setter(module=7), "module must be text, got 7"),
    "call": (setter(call=-1), "call must be an integer from 0, got -1"),
    "huge call": (setter(call=2**80), "call must be an integer"),
    "float call": (setter(call=0.5), "call must be an integer"),
    "sequence": (setter(sequence=True), "sequence must be an integer"),
    "shape": (setter(shape="4"), "shape must be a list"),
    "negative shape": (setter(shape=[-4]), "shape must be an integer from 0"),
    "many dimensions": (setter(shape=[1] * 100), "at most 64 sizes"),
    "digest": (setter(digest="../../x"), "digest must match"),
    "dtype": (setter(dtype=3), "dtype must be text"),
    "requires_grad": (setter(requires_grad=1), "requires_grad must be true or false"),
    "response": (setter(response=3), "response must be an object"),
    "error": (setter(response={"error": [1, 2]}), "error must be 3 numbers"),
    "infinite error": (setter(response={"error": [1e400, 0, 0]}), "error must be 3 numbers"),
    "traversal": (setter(blob="../blob-00000.safetensors"), "blob must match"),
    "absolute": (setter(blob="/etc/passwd"), "blob must match"),
    "newline": (setter(blob="blob-00000.safetensors\n"), "blob must match"),
    "other file": (setter(blob="manifest.json"), "blob must match"),
    "arguments": (call_setter(arguments=[]), "arguments must be an object"),
    "parameters": (call_setter(parameters="x"), "parameters must match"),
    "training": (call_setter(training=None), "training must be true or false"),
}


@pytest.mark.parametrize("name", INDICES)
def test_a_bad_index_is_one_clear_error(recording: Path, name: str) -> None:
    spoil, words = INDICES[name]
    spoil(recording)
    with pytest.raises(ValueError, match=words) as caught:
        load_recording(recording)
    assert str(recording / "index.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value).replace(str(recording), "")


def first_blob(path: Path) -> Path:
    return path / next(x["blob"] for x in lines(path) if x.get("phase") == "forward")


def flip_a_bit(path: Path) -> None:
    blob = first_blob(path)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)


def declare_more_than_there_is(path: Path) -> None:
    header = b'{"%s":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    digest = next(x["digest"] for x in lines(path) if x.get("phase") == "forward")
    data = header % digest.encode()
    first_blob(path).write_bytes(len(data).to_bytes(8, "little") + data + b"\0" * 16)


def all_into(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        write_lines(path, [x | {"blob": name} if x.get("blob") else x for x in lines(path)])

    return change


BLOBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: first_blob(p).unlink(), "is missing"),
    "missing file name": (all_into("blob-00042.safetensors"), "blob-00042.* is missing"),
    "empty": (lambda p: first_blob(p).write_bytes(b""), "is damaged: .*[Hh]eader"),
    "truncated": (lambda p: truncate(first_blob(p).name, 9)(p), "is damaged"),
    "huge header": (lambda p: first_blob(p).write_bytes(b"\xff" * 64), "is damaged"),
    "huge tensor": (declare_more_than_there_is, "is damaged"),
    "other bytes": (flip_a_bit, "has other bytes than recorded"),
    "a link": (lambda p: link_to(first_blob(p)), "is a symbolic link"),
    "a directory": (lambda p: (first_blob(p).unlink(), first_blob(p).mkdir()), "is missing"),
    "not in it": (setter(digest="0" * 64), "does not hold tensor 000000000000"),
    "other shape": (setter(shape=[10**9, 10**9]), r"where the index says .*\[1000000000, "),
    "other dtype": (setter(dtype="int32"), r"holds torch.float32 .* index says torch.int32"),
    "same bytes, other name": (setter(dtype="float8_e4m3fnuz"), "index says torch.uint8"),
    "unknown dtype": (setter(dtype="float7"), "has no dtype 'float7'"),
    "not a dtype": (setter(dtype="os"), "has no dtype 'os'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOBS)
def test_a_bad_blob_is_one_clear_error(recording: Path, name: str) -> None:
    spoil, words = BLOBS[name]
    spoil(recording)
    with pytest.raises(ValueError, match=words):
        read_all(recording)
    with pytest.raises(ValueError, match=words):
        compare(recording, recording)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped"])
def test_damage_to_any_blob_is_found_on_opening(recording: Path, damage: str) -> None:
    """Also to those that a comparison by digest alone would not read."""
    for blob in sorted(recording.glob("*.safetensors")):
        whole = blob.read_bytes()
        if damage == "deleted":
            blob.unlink()
        elif damage == "truncated":
            blob.write_bytes(whole[: len(whole) // 2])
        else:
            blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=blob.name):
            load_recording(recording)
        blob.write_bytes(whole)
    load_recording(recording)


def test_an_entry_cannot_be_passed_off_as_another(recording: Path) -> None:
    # The digest covers dtype and shape: the same bytes under another shape are another tensor.
    def reshape(line: dict[str, Any]) -> None:
        line["shape"] = line["shape"][::-1]

    change_line(recording, reshape)
    with pytest.raises(ValueError, match="where the index says"):
        read_all(recording)


def test_a_truth_that_does_not_fit_its_tensor_is_refused(recording: Path) -> None:
    found = lines(recording)
    forward = [x for x in found if x.get("phase") == "forward"]
    run, truth = (next(x for x in forward if x["kind"] == k) for k in ("run", "truth"))
    truth.update({name: run[name] for name in ("dtype", "digest", "blob")})
    write_lines(recording, found)
    with pytest.raises(ValueError, match=r"the truth of forward of layers\.0.* is float32"):
        compare(recording, recording)


def test_an_incomplete_recording_loses_its_last_line_and_says_so(recording: Path) -> None:
    change_manifest(recording, complete=False)
    whole = load_recording(recording)
    assert whole.dropped is None
    truncate("index.jsonl", 5)(recording)
    opened = load_recording(recording)
    assert opened.dropped is not None
    assert "index.jsonl, which was being written" in opened.dropped
    assert len(opened.entries) + len(opened.truths) == len(whole.entries) + len(whole.truths) - 1
    notes = compare(recording, recording).notes
    assert any("dropped line" in note for note in notes)
    assert any("is incomplete: the run was killed" in note for note in notes)


def test_no_such_recording(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x is no recording: there is no such directory"):
        load_recording(tmp_path / "x")


def test_another_framework_can_write_it(tmp_path: Path) -> None:
    # docs/recording-format.md, by hand, without torch
    import hashlib

    path = tmp_path / "foreign"
    path.mkdir()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    digest = hashlib.sha256(b"float32 2,3\n" + values.tobytes()).hexdigest()
    save_file({digest: values}, path / "blob-00000.safetensors")
    entry = {
        "kind": "run", "sequence": 0, "phase": "forward", "module": "dense", "call": 0,
        "path": "0", "class": "Dense", "dtype": "float32", "shape": [2, 3], "digest": digest,
        "blob": "blob-00000.safetensors", "requires_grad": True, "autocast": None, "root": -1,
        "response": None,
    }  # fmt: skip
    (path / "index.jsonl").write_text(json.dumps(entry) + "\n")
    manifest = {
        "schema": 1, "framework": "numpy", "versions": {"numpy": np.__version__},
        "platform": "any", "device": {"chip": "any", "family": "cpu", "torch_device": "cpu"},
        "numerics_mode": {}, "seed": 0, "arguments": [], "gradients": False, "reference": False,
        "lines": 1, "complete": True, "error": None,
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    opened = read_all(path)
    assert opened.manifest.framework == "numpy"
    entry_key = Key("forward", "dense", 0, "0")
    assert opened.tensor(opened.entries[entry_key]).tolist() == values.tolist()


@pytest.mark.parametrize("kind", ["file", "full directory", "dangling link"])
def test_a_place_in_use_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r"
    if kind == "file":
        path.write_text("mine")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        (path / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"r exists and is not"):
        record(nn.Linear(2, 2), path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert recorded(tmp_path / "r", case("mlp")).manifest.complete


def test_a_place_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "r"
    with pytest.raises(OSError, match=r"cannot write the recording .*/missing/r: No such file"):
        record(nn.Linear(2, 2), path).__enter__()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: what a full disk does, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train_until_the_disk_is_full(path: Path, model: nn.Module) -> None:
    with record(model, path):
        for _ in range(50):
            step(model, case("cnn"))


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_comes_through_once(tmp_path: Path) -> None:
    model = made(case("cnn").model)
    with pytest.raises(OSError, match=r"cannot write the recording .*: File too large; free"):
        train_until_the_disk_is_full(tmp_path / "r", model)
    assert not model.conv1._forward_hooks
    opened = load_recording(tmp_path / "r")
    assert not opened.manifest.complete
    assert not list(tmp_path.rglob("*.part"))


def test_a_write_that_fails_in_backward_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_BUFFER", 1)  # every tensor is written at once
    model, one = made(case("mlp").model), case("mlp")

    def full(tensors: Any) -> bytes:
        if torch._C._current_autograd_node() is not None:
            raise OSError(28, os.strerror(28))
        return b""

    monkeypatch.setattr(writer, "save", full)

    def train() -> None:
        with record(model, tmp_path / "r", reference=False):
            step(model, one)

    with pytest.raises(OSError, match="No space left on device; free space or choose another"):
        train()
    assert not json.loads((tmp_path / "r" / "manifest.json").read_text())["complete"]

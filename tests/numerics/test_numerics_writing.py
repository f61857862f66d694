"""Recordings on their way to the disk: lines, tensors, caps, kills, full disks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from accel.numerics import load_recording
from accel.numerics.storage import writer
from accel.numerics.storage.encoding import why_not_recorded
from accel.numerics.storage.entries import (
    PHASES,
    SOURCE_KINDS,
    Adjoint,
    Check,
    End,
    Key,
    Line,
    ModuleCall,
    Operator,
    Place,
    Ref,
    RootCall,
    Shard,
    Skipped,
    Source,
    Special,
    Update,
    Value,
)
from accel.numerics.storage.lines import LONGEST, Encoder
from accel.numerics.storage.parsing import SPECIALS, Parser
from accel.numerics.storage.writer import Writer
from accel_kernels.sketch import sketch
from tests.numerics.numerics_recordings import (
    MANIFEST,
    X,
    change_manifest,
    index_of,
    kept_and_read,
    lines_in,
    operator,
    reading,
    value,
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


# --- every entry comes back --------------------------------------------------------------------

ids = st.integers(0, 2**62 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64) + 1, 2**64 - 1), words,
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
arguments = st.recursive(
    st.one_of(
        scalars,
        st.builds(Ref, ids),
        st.builds(Special, st.sampled_from(sorted(SPECIALS)), words),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
named_arguments = st.dictionaries(words, arguments, max_size=3)
named_ids = st.dictionaries(words, ids, max_size=3)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
autocasts = st.none() | words


@st.composite
def values(draw: st.DrawFn) -> Value:
    shape = draw(shapes)
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    offset = tuple(draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape))))
    whole = tuple(size + first for size, first in zip(shape, offset, strict=True))
    return Value(
        draw(ids),
        "float32",
        shape,
        draw(st.sampled_from([None, sketch(tensor)])),
        draw(st.sampled_from([None, "0123456789abcdef" * 4])),
        draw(st.none() | ids),
        draw(st.sampled_from([None, Shard(whole, offset), Shard(whole, offset, True)])),
        draw(st.none() | words),
    )


keys = st.builds(Key, st.sampled_from(PHASES), words, ids, words, words, ids)
operators = st.builds(
    Operator, ids, keys, words, words, named_arguments,
    st.lists(st.none() | ids, max_size=3).map(tuple),
    st.dictionaries(words, st.lists(ids, max_size=3).map(tuple), max_size=2),
    st.none() | st.builds(Place, words, ids, words), autocasts,
)  # fmt: skip
plain = st.recursive(
    scalars | st.sampled_from([float("inf"), float("-inf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("x") | words, inner),
    max_leaves=6,
).filter(lambda value: not (isinstance(value, dict) and list(value) == ["float"]))
lines = st.one_of(
    operators,
    values(),
    st.builds(Source, ids, st.sampled_from(SOURCE_KINDS), words),
    st.tuples(ids, ids).map(sorted).flatmap(
        lambda span: st.builds(
            ModuleCall, words, ids, words, st.sampled_from(["forward", "recompute"]),
            st.just(span[0]), st.just(span[1]), named_ids, named_ids, st.booleans(),
        )
    ),
    st.builds(
        RootCall, ids, st.booleans(), autocasts, st.booleans(), named_arguments,
        st.dictionaries(words, words, max_size=2),
    ),
    st.builds(Adjoint, ids, ids),
    st.builds(Update, words, words, ids),
    st.builds(Check, ids, st.dictionaries(words, plain, max_size=3)),
    st.builds(Skipped, words, words),
)  # fmt: skip


def parsed(text: bytes) -> list[Line]:
    parser = Parser()
    found = [parser.line(line) for line in text.splitlines()]
    return [line for line in found if line is not None]


@settings(deadline=None, max_examples=200)
@given(st.lists(lines, max_size=6), st.booleans())
def test_every_line_comes_back(entries: list[Line], one_by_one: bool) -> None:
    encoder = Encoder()
    if one_by_one:
        text = b"".join(encoder.lines_of(entry) for entry in entries)
    else:
        text = encoder.lines_of(*entries)
    text += encoder.lines_of(End(3, 1))
    assert parsed(text) == [*entries, End(3, 1)]
    assert all(json.loads(line)["kind"] for line in text.splitlines())


def test_numbers_that_are_not_finite_have_words() -> None:
    encoder = Encoder()
    made = operator(0, [0], [])
    made.arguments.update(low=-float("inf"), high=float("inf"), none=float("nan"))
    [back, check] = parsed(encoder.lines_of(made, Check(0, {"M": float("nan")})))
    assert isinstance(back, Operator)
    assert isinstance(check, Check)
    found = {name: back.arguments[name] for name in ("low", "high", "none")}
    assert found == {
        "low": Special("float", "-inf"), "high": Special("float", "inf"),
        "none": Special("float", "nan"),
    }  # fmt: skip
    assert np.isnan(check.fields["M"])


def test_subclasses_of_plain_arguments_are_written_as_those() -> None:
    import enum

    class Reduction(enum.IntEnum):
        MEAN = 1

    made = operator(0, [0], [])
    made.arguments.update(reduction=Reduction.MEAN, size=torch.Size([2, 3]), on=np.float64(0.5))
    [back] = parsed(Encoder().lines_of(made))
    assert isinstance(back, Operator)
    assert [back.arguments[name] for name in ("reduction", "size", "on")] == [1, [2, 3], 0.5]


def test_what_no_recording_holds_is_refused_when_written() -> None:
    made = operator(0, [0], [])
    made.arguments["x"] = torch.device("cpu")
    with pytest.raises(TypeError, match=r"argument of type device cannot be recorded: .* Special"):
        Encoder().lines_of(made)
    with pytest.raises(TypeError, match="a check cannot hold a Tensor"):
        Encoder().lines_of(Check(0, {"x": X}))
    long = Skipped("x", "y" * LONGEST)
    with pytest.raises(ValueError, match=r"a line of \d+ bytes cannot be recorded"):
        Encoder().lines_of(long)


def test_a_file_name_that_is_no_text_is_written_as_text() -> None:
    name = os.fsdecode(b"\xff.py")
    made = operator(0, [0], [], place=Place(name, 1, "f"))
    [back] = parsed(Encoder().lines_of(made))
    assert isinstance(back, Operator)
    assert back.place == Place("\\udcff.py", 1, "f")


def test_a_line_of_the_program_is_numbered_once() -> None:
    place = Place("train.py", 7, "main")
    text = Encoder().lines_of(*[operator(i, [0], [], place=place) for i in range(9)])
    assert text.count(b"train.py") == 1


def test_an_operator_with_one_value_takes_less_than_1200_bytes() -> None:
    one = operator(0, [0, 1], [2], place=Place("train.py", 7, "main"))
    assert len(Encoder().lines_of(one, value(2, X))) < 1200


def test_lines_of_an_operator_with_one_value_take_microseconds() -> None:
    encoder = Encoder()
    pairs = [(operator(i, [0, 1], [i + 2]), value(i + 2, X)) for i in range(300)]
    took = []
    for _ in range(7):
        begun = time.perf_counter()
        for pair in pairs:
            encoder.lines_of(*pair)
        took.append((time.perf_counter() - begun) / len(pairs))
    # Alone on a core it takes 6 µs; json.dumps of the same fields takes 30.
    assert min(took) < 25e-6


# --- tensors -----------------------------------------------------------------------------------

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64,
    torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (63,), (4, 5)])
def test_every_dtype_and_shape_comes_back(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = (torch.rand(shape) * 4).to(dtype)
    back = kept_and_read(tmp_path / "r", x)
    assert back.dtype == dtype
    assert back.shape == x.shape
    raw = [t.reshape(-1).contiguous().view(torch.uint8) for t in (back, x)]
    assert torch.equal(*raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t(),
        lambda x: x[:, :1].expand(4, 6),
        lambda x: x[::2, 1::3],
        lambda x: torch.complex(x, x).conj(),
        lambda x: torch.complex(x, x).conj().imag,
        lambda x: x.relu().to_sparse(),
    ],
    ids=["transposed", "expanded", "strided", "conjugate", "negative", "sparse"],
)
def test_layouts_do_not_matter(tmp_path: Path, change: Any) -> None:
    out = change(torch.randn(4, 6))
    expected = out.to_dense() if out.is_sparse else out.resolve_conj().resolve_neg()
    assert torch.equal(kept_and_read(tmp_path / "r", out), expected)


def test_equal_tensors_are_stored_once_and_any_safetensors_reads_them(tmp_path: Path) -> None:
    one = Writer(tmp_path / "r", MANIFEST)
    step = one.start_step(0)
    digests = [step.keep(torch.full((1000,), float(i % 2))) for i in range(10)]
    step.add(*[Value(i, "float32", (1000,), blob=d) for i, d in enumerate(digests)])
    step.end(End(0, 0))
    [blob] = (tmp_path / "r/rank-0/step-0").glob("blob-*.safetensors")
    assert blob.stat().st_size < 2 * 4000 + 500
    found = load_file(blob)
    assert {name: set(array) for name, array in found.items()} == {
        digests[0]: {0.0}, digests[1]: {1.0},
    }  # fmt: skip


def test_kinds_of_tensors_without_values_are_told_apart() -> None:
    assert why_not_recorded(torch.ones(2)) is None
    assert why_not_recorded(torch.ones(2, device="meta")) == "a meta tensor has no values"


# --- runs that were killed, places that are full -----------------------------------------------


def test_a_killed_run_is_readable_at_every_byte(recording: Path) -> None:
    """Cut anywhere, it loses its last line and those that speak of what it said."""
    change_manifest(recording, complete=False)
    whole = index_of(recording).read_bytes()
    counts = set()
    for size in range(0, len(whole), 3):  # lines have lengths of every remainder
        index_of(recording).write_bytes(whole[:size])
        step = reading(recording)
        cut_inside = size > 0 and whole[size - 1 : size] != b"\n"
        assert (step.dropped_line is not None) >= cut_inside
        if cut_inside:
            assert "of index.jsonl, which was being written" in str(step.dropped_line)
        assert step.end is None
        for one in step.operators:
            assert set(one.produced) <= set(step.values)
        counts.add(len(step.operators))
    assert counts == {0, 1, 2}


def test_lines_that_speak_of_lost_ones_are_counted(recording: Path) -> None:
    change_manifest(recording, complete=False)
    kept = [x for x in lines_in(recording) if x["kind"] != "end" and x.get("id") != 2]
    write_lines(recording, kept)
    step = reading(recording)
    assert step.dropped_line == "3 lines about values that were not written yet"
    assert step.values[3].base is None
    assert step.values[3].skipped == "its base was not written before the run ended"


KILLED = """
import sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from tests.numerics.numerics_recordings import MANIFEST, operator, value
from accel.numerics.storage import writer
writer.BUFFER = 2 ** 16
step = writer.Writer({path!r}, MANIFEST).start_step(0)
print("begun", flush=True)
x = torch.randn(64)
step.add(value(0, x))
for i in range(10 ** 9):
    y = torch.full((64,), float(i))
    blob = step.keep(y) if {full} else None
    step.add(value(i + 1, y, blob=blob), operator(i, [0, i], [i + 1]))
"""


def wait_until(reached: Callable[[], bool]) -> None:
    for _ in range(3000):
        if reached():
            return
        time.sleep(0.02)
    raise AssertionError("a minute has passed")


@pytest.mark.parametrize("full", [False, True], ids=["sketch", "full"])
def test_kill_9_leaves_a_readable_recording(tmp_path: Path, full: bool) -> None:
    root = Path(__file__).parents[2]
    code = KILLED.format(
        paths=[str(root), str(root / "kernels")], path=str(tmp_path / "r"), full=full
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    wait_until(lambda: index_of(tmp_path / "r").stat().st_size > 100_000)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not load_recording(tmp_path / "r").manifest.complete
    step = reading(tmp_path / "r")
    assert step.end is None
    assert len(step.operators) > 20
    assert [one.id for one in step.operators] == list(range(len(step.operators)))
    kept = [one for one in step.values.values() if one.blob is not None]
    assert (len(kept) > 20) == full


def test_lines_are_on_the_disk_when_add_returns(tmp_path: Path) -> None:
    step = Writer(tmp_path / "r", MANIFEST).start_step(0)
    write_step(step)
    before = index_of(tmp_path / "r").stat().st_size  # what came before the first kept tensor
    assert before > 0
    step.close()  # what waited with the tensors
    assert index_of(tmp_path / "r").stat().st_size > before
    step = reading(tmp_path / "r")
    assert (len(step.operators), step.end) == (2, None)


def test_an_add_without_kept_tensors_is_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Writer(tmp_path / "r", MANIFEST).start_step(0)
    written: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: written.append(len(data)) or write(fd, data))
    step.add(value(0, X), value(1, X), operator(0, [0], [1], place=Place("a", 1, "b")))
    assert written == [index_of(tmp_path / "r").stat().st_size]


def test_no_line_names_a_tensor_that_is_not_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BUFFER", 1000)
    step = Writer(tmp_path / "r", MANIFEST).start_step(0)
    sizes = []
    for number in range(40):
        y = torch.full((20,), float(number))
        step.add(value(number, y, blob=step.keep(y.clone())))
        sizes.append(len(reading(tmp_path / "r").values))
    assert sizes[-1] > 20
    assert max(i + 1 - size for i, size in enumerate(sizes)) <= 1000 // 80 + 1


def test_the_size_cap_is_kept_and_said(tmp_path: Path) -> None:
    one = Writer(tmp_path / "r", MANIFEST, cap=1000)
    step = one.start_step(0)
    digests = []
    for number in range(9):
        y = torch.full((100,), float(number // 2))  # each twice: 400 bytes for both
        digests.append(step.keep(y.clone()))
        step.add(value(number, y, blob=digests[-1]))
    digests.append(step.keep(torch.ones(10)))  # still fits
    assert [digest is None for digest in digests] == [*[False] * 4, *[True] * 5, False]
    assert step.dropped == 5
    step.end(End(0, step.dropped))
    second = one.start_step(1)
    assert second.keep(torch.full((100,), 7.0)) is None  # one cap for all steps
    second.end(End(0, second.dropped))
    one.finish(MANIFEST.finished(None))
    steps = load_recording(tmp_path / "r").ranks[0].steps
    assert [one.end.dropped for one in steps.values() if one.end] == [5, 1]
    assert [steps[0].has_tensor(i) for i in range(9)] == [*[True] * 4, *[False] * 5]


@pytest.mark.parametrize("cap", [-1, 1.5, True, "1G"])
def test_a_cap_that_is_none_is_refused(tmp_path: Path, cap: Any) -> None:
    with pytest.raises(ValueError, match="cap must be a number of bytes or None, got"):
        Writer(tmp_path / "r", MANIFEST, cap=cap)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("kind", ["file", "full directory", "dangling link", "own rank"])
def test_a_place_in_use_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r"
    if kind == "file":
        path.write_text("mine")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        (path / ("rank-0" if kind == "own rank" else "x")).mkdir(parents=True)
        (path / ("rank-0" if kind == "own rank" else "x") / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"exists and is not"):
        Writer(path, MANIFEST)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_used_and_a_step_only_once(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    one = Writer(tmp_path / "r", MANIFEST)
    one.start_step(3)
    with pytest.raises(ValueError, match="step 3 was recorded before: number the steps apart"):
        one.start_step(3)


def test_directories_on_the_way_are_made(tmp_path: Path) -> None:
    Writer(tmp_path / "missing" / "too" / "r", MANIFEST)
    assert (tmp_path / "missing" / "too" / "r" / "rank-0" / "manifest.json").is_file()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write the recording .*/file/r: Not a directory"):
        Writer(tmp_path / "file" / "r", MANIFEST)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: what a full disk does, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("kept", [False, True], ids=["lines", "tensors"])
def test_a_full_disk_is_one_clear_error_and_nothing_half(tmp_path: Path, kept: bool) -> None:
    one = Writer(tmp_path / "r", MANIFEST)
    step = one.start_step(0)
    errors = []
    for number in range(200):
        y = torch.full((1000,), float(number))
        try:
            blob = step.keep(y.clone()) if kept else None
            step.add(value(number, y, blob=blob))
            if kept and number == 150:
                step.close()
        except OSError as error:
            errors.append(error)
    [error] = errors
    assert "cannot write the recording" in str(error)
    assert "File too large; free space or choose another place" in str(error)
    assert one.failed
    step.end(End(0, 0))  # does nothing any more
    one.finish(MANIFEST.finished(None))
    read = reading(tmp_path / "r")
    assert read.dropped_line is None  # no half line
    assert read.end is None
    assert not load_recording(tmp_path / "r").manifest.complete
    assert (len(read.values) == 0) == kept
    assert not list((tmp_path / "r").rglob("*.part"))
    assert one.start_step(1).keep(X) is None  # and neither does this

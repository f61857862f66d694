"""Recordings made from NumPy arrays: equal to those made from torch, and possible without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from accel.numerics import ArrayRecorder, compare, load_recording, record
from accel.numerics.overrides import Overrides
from accel.numerics.storage.entries import ModuleCall, RootCall, Source
from accel.numerics.storage.numpy_sketch import numpy_sketch
from accel.numerics.storage.steps import Step
from accel_kernels.sketch import Sketch, sketch

ROOT = Path(__file__).parents[2]
X = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)


def assert_equal_sketches(ours: Sketch, theirs: Sketch) -> None:
    assert ours.mask == theirs.mask
    assert (ours.least, ours.largest, ours.count) == (theirs.least, theirs.largest, theirs.count)
    scale = theirs.norm if np.isfinite(theirs.norm) else 1.0
    # Only the order of additions differs.
    assert np.allclose(ours.sums, theirs.sums, rtol=0, atol=1e-14 * scale, equal_nan=True)
    assert np.isclose(ours.norm, theirs.norm, rtol=1e-13)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4096, 2**16 - 1, 2**16 + 1, 150_001])
def test_a_sketch_is_that_of_the_torch_tensor(count: int) -> None:
    array = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    assert_equal_sketches(numpy_sketch(array), sketch(torch.from_numpy(array)))


@pytest.mark.parametrize("count", [5, 100, 70_000])
def test_elements_that_are_not_finite_are_counted_where_they_are(count: int) -> None:
    array = np.random.default_rng(1).standard_normal(count)
    for start, strange in enumerate((np.nan, np.inf, -np.inf, np.nan)):
        array[start :: max(count // 7, 2)] = strange
    assert_equal_sketches(numpy_sketch(array), sketch(torch.from_numpy(array)))
    all_nan = np.full(count, np.nan, np.float16)
    assert_equal_sketches(numpy_sketch(all_nan), sketch(torch.from_numpy(all_nan)))


DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "int64", "int32", "int16", "int8", "uint64", "uint32",
    "uint8", "bool", "complex64", "complex128",
]  # fmt: skip


def numpy_dtype(name: str) -> np.dtype[Any]:
    if not hasattr(np, name) and name != "bool":
        return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    return np.dtype(name)


def recorded(path: Path, array: Any, level: str = "full") -> Step:
    with ArrayRecorder(
        path, framework="numpy", versions={"numpy": np.__version__}, level=level
    ) as recorder:
        recorder.module("fc", inputs={"0": array}, outputs={})
    return load_recording(path).ranks[0].steps[0]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_every_dtype_and_shape_comes_back(tmp_path: Path, name: str, shape: Any) -> None:
    array = (np.random.default_rng(0).random(shape) * 4).astype(numpy_dtype(name))
    step = recorded(tmp_path / "r", array)
    value, back = step.values[0], step.tensor(0)
    assert (value.dtype, value.shape) == (name, shape)
    assert back.dtype == getattr(torch, name)
    assert back.shape == shape
    raw = back.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    assert raw == array.tobytes()
    assert value.sketch is not None
    assert_equal_sketches(value.sketch, sketch(back))


@pytest.mark.parametrize(
    "array",
    [X.T, X[::2, 1:3], np.broadcast_to(X[0], (5, 4)), X.astype(">f4"), np.asfortranarray(X),
     np.float32(3.5), torch.from_numpy(X)],
    ids=["transposed", "strided", "broadcast", "big-endian", "column-major", "scalar", "torch"],
)  # fmt: skip
def test_layouts_do_not_matter(tmp_path: Path, array: Any) -> None:
    back = recorded(tmp_path / "r", array).tensor(0).numpy()
    assert np.array_equal(back, np.asarray(array))


def test_what_is_recorded_is_read_as_from_torch(tmp_path: Path) -> None:
    with ArrayRecorder(
        tmp_path / "r", framework="paddle", versions={"paddle": "3"}, seed=7, level="full",
        numerics_mode={"FLAGS_use_mkldnn": True}, arguments=["train.py"],
    ) as recorder:  # fmt: skip
        for _ in range(2):
            recorder.parameter("fc.weight", X)
            recorder.buffer("fc.mean", X)
            recorder.module("fc", inputs={"0": X}, outputs={"0": X + 1}, class_name="Linear")
            recorder.module("fc", inputs={"0": X}, outputs={"0": X + 2}, call=1)
            recorder.module("", inputs={"0": X}, outputs={"0": X[0]}, training=False)
            recorder.gradient("fc.weight", X * 2)
            recorder.gradient("fc", X * 3, output="0", call=1)
            recorder.step()
    recording = load_recording(tmp_path / "r")
    manifest = recording.manifest
    assert (manifest.framework, manifest.level, manifest.seed) == ("paddle", "full", 7)
    assert manifest.versions["paddle"] == "3"
    assert manifest.versions["numpy"] == np.__version__
    assert manifest.numerics_mode == {"FLAGS_use_mkldnn": True}
    assert manifest.complete
    assert list(recording.ranks[0].steps) == [0, 1]
    for step in recording.ranks[0].steps.values():
        assert step.end is not None
        by_name = {source.name: number for number, source in step.sources.items()}
        assert step.sources[by_name["fc.weight"]] == Source(0, "parameter", "fc.weight")
        assert step.sources[by_name["0"]].kind == "input"
        assert step.calls == (RootCall(0, False, None, False, {}, {}),)
        assert [(m.module, m.call, m.class_name) for m in step.modules] == [
            ("fc", 0, "Linear"), ("fc", 1, ""), ("", 0, ""),
        ]  # fmt: skip
        second = step.modules[1]
        assert isinstance(second, ModuleCall)
        assert torch.equal(step.tensor(second.outputs["0"]), torch.from_numpy(X + 2))
        weight, output = by_name["fc.weight"], second.outputs["0"]
        assert torch.equal(step.tensor(step.adjoints[weight]), torch.from_numpy(X * 2))
        assert torch.equal(step.tensor(step.adjoints[output]), torch.from_numpy(X * 3))
    assert recording.verify() > 0


def test_elements_are_kept_at_full_and_up_to_the_cap(tmp_path: Path) -> None:
    assert not recorded(tmp_path / "a", X, "sketch").has_tensor(0)
    with ArrayRecorder(
        tmp_path / "b", framework="jax", versions={}, level="full", cap=100
    ) as recorder:
        recorder.module("", inputs={"0": X, "1": X * 2, "2": X * 3}, outputs={})
    step = load_recording(tmp_path / "b").ranks[0].steps[0]
    assert [step.has_tensor(number) for number in range(3)] == [True, True, False]
    assert step.end is not None
    assert step.end.dropped == 1


def test_the_elements_of_chosen_modules_are_kept(tmp_path: Path) -> None:
    with ArrayRecorder(
        tmp_path / "r", framework="jax", versions={}, level="full", only=["fc*", "backward:head/*"]
    ) as recorder:
        for name in ("fc", "head"):
            recorder.parameter(f"{name}.weight", X)
            recorder.module(name, inputs={}, outputs={"0": X * 2})
            recorder.gradient(name, X * 3, output="0")
    recording = load_recording(tmp_path / "r")
    step = recording.ranks[0].steps[0]
    assert recording.manifest.only == ("fc*", "backward:head/*")
    assert [step.has_tensor(number) for number in range(6)] == [*[True] * 3, False, False, True]


def test_accel_record_chooses_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Overrides(str(tmp_path / "zoom"), "full", ("b",), (1,))
    monkeypatch.setenv("ACCEL_RECORD", asked.to_text())
    with ArrayRecorder(tmp_path / "r", framework="jax", versions={}) as recorder:
        for factor in range(3):
            for name in ("a", "b"):
                recorder.module(name, inputs={}, outputs={"0": X * factor})
            recorder.step()
    assert not (tmp_path / "r").exists()
    recording = load_recording(tmp_path / "zoom")
    assert (recording.manifest.level, recording.manifest.steps) == ("full", "1")
    assert list(recording.ranks[0].steps) == [1]
    step = recording.ranks[0].steps[1]
    assert [step.has_tensor(number) for number in range(2)] == [False, True]
    assert torch.equal(step.tensor(1), torch.from_numpy(X))


def test_an_error_is_recorded_and_the_step_left_open(tmp_path: Path) -> None:
    recorder = ArrayRecorder(tmp_path / "r", framework="jax", versions={})

    def run() -> None:
        with recorder:
            recorder.module("", inputs={"0": X}, outputs={})
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    recording = load_recording(tmp_path / "r")
    assert recording.manifest.error == "RuntimeError: out of memory"
    assert recording.ranks[0].steps[0].end is None
    assert len(recording.ranks[0].steps[0].modules) == 1
    with pytest.raises(ValueError, match="the recording has ended: record inside its `with`"):
        recorder.step()


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda r: r.module("a", inputs={"0": [1.0]}, outputs={}), TypeError, "got list: give numpy"),
    (lambda r: r.module("a", inputs={"0": 1.0}, outputs={}), TypeError, "got float"),
    (lambda r: r.module("a", inputs={"0": None}, outputs={}), TypeError, "got NoneType"),
    (lambda r: r.module("a", inputs=[X], outputs={}), TypeError, "inputs must be a dict of arrays"),
    (lambda r: r.module("a", inputs={}, outputs=X), TypeError, "outputs must be a dict of arrays"),
    (lambda r: r.module("a", inputs={0: X}, outputs={}), TypeError, "name among inputs must be"),
    (lambda r: r.module(3, inputs={}, outputs={}), TypeError, "module's name must be text, got 3"),
    (lambda r: r.module("a", inputs={}, outputs={}, call=-1), ValueError, "call must be an integ"),
    (lambda r: r.parameter("", X), ValueError, "a parameter's name must not be empty"),
    (lambda r: r.parameter("w", np.array(["x"])), TypeError, "has dtype str.*, which no recording"),
    (lambda r: r.parameter("w", np.array([{}])), TypeError, "has dtype object, which no recording"),
    (lambda r: r.parameter("w", X.astype("datetime64[s]")), TypeError, "dtype datetime64"),
    (lambda r: r.parameter("w", X.astype(np.longdouble)), TypeError, "dtype (float128|longdouble)"),
    (lambda r: r.parameter("w", np.ma.masked_less(X, 0)), TypeError, "got MaskedArray"),
    (lambda r: r.parameter("w", X.astype("u2")), ValueError, "uint16, which may be bfloat16"),
    (lambda r: r.gradient("w", X), ValueError, "parameter 'w' was not recorded in this step"),
    (lambda r: r.gradient("a", X, output="0"), ValueError, "output '0' of call 0 of module 'a'"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_is_refused_and_leaves_the_recording_whole(tmp_path: Path, number: int) -> None:
    call, kind, words = BAD[number]
    with ArrayRecorder(tmp_path / "r", framework="jax", versions={}) as recorder:
        with pytest.raises(kind, match=words):
            call(recorder)
        recorder.parameter("v", X)
    step = load_recording(tmp_path / "r").ranks[0].steps[0]
    assert [source.name for source in step.sources.values()] == ["v"]


def test_the_same_thing_twice_in_a_step_is_refused(tmp_path: Path) -> None:
    with ArrayRecorder(tmp_path / "r", framework="jax", versions={}) as recorder:
        recorder.parameter("w", X)
        recorder.module("a", inputs={}, outputs={"0": X})
        with pytest.raises(ValueError, match="parameter 'w' was recorded before in this step"):
            recorder.parameter("w", X)
        with pytest.raises(ValueError, match="call 0 of module 'a' was recorded before"):
            recorder.module("a", inputs={}, outputs={"0": X})
        with pytest.raises(ValueError, match=r"must have its shape \[3, 4\], got \[4, 3\]"):
            recorder.gradient("w", X.T)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "check"}, "level must be 'sketch' or 'full' for arrays, got"),
        ({"rank": 2, "world": 2}, "rank must be from 0 to below world, got 2 and 2"),
        ({"framework": 3}, "framework must be text, got 3"),
        ({"versions": {"jax": 3}}, "jax must be text, got 3"),
        ({"seed": 2**70}, "within"),
        ({"cap": -1}, "cap must be a number of bytes or None"),
        ({"numerics_mode": {"x": float("nan")}}, "not JSON compliant"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    arguments: dict[str, Any] = {"framework": "jax", "versions": {}} | changes
    with pytest.raises(ValueError, match=words):
        ArrayRecorder(tmp_path / "r", **arguments)
    assert not (tmp_path / "r").exists()


WITHOUT_TORCH = """
import sys
for name in ("torch", "safetensors"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
from accel.numerics import ArrayRecorder
x = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)
with ArrayRecorder({path!r}, framework="numpy", versions={{}}, level="full") as recorder:
    recorder.parameter("w", x)
    recorder.module("", inputs={{"0": x}}, outputs={{"0": x @ x.T}})
    recorder.gradient("w", x)
"""


def test_it_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n"
    code += WITHOUT_TORCH.format(path=str(tmp_path / "r"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step = load_recording(tmp_path / "r").ranks[0].steps[0]
    assert torch.equal(step.tensor(0), torch.from_numpy(X))
    assert step.values[0].sketch is not None
    assert_equal_sketches(step.values[0].sketch, sketch(torch.from_numpy(X)))


# --- beside a recording of torch ---------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(8), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x))


def foreign_run(
    path: Path,
    model: Small,
    x: torch.Tensor,
    epsilon: float,
    level: Literal["sketch", "full"] = "sketch",
) -> None:
    """The same step in NumPy, in float32."""
    given = {name: p.detach().numpy() for name, p in model.named_parameters()}
    array = x.numpy()
    centred = array - array.mean(-1, keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(epsilon))
    normal = normal * given["norm.weight"] + given["norm.bias"]
    out = normal @ given["fc.weight"].T + given["fc.bias"]
    gradient = (2 * out / out.size).astype(np.float32)
    about = {"numpy": np.__version__}
    with ArrayRecorder(path, framework="numpy", versions=about, level=level) as recorder:
        for name, parameter in given.items():
            recorder.parameter(name, parameter)
        recorder.module("norm", inputs={"0": array}, outputs={"0": normal}, class_name="LayerNorm")
        recorder.module("fc", inputs={"0": normal}, outputs={"0": out}, class_name="Linear")
        recorder.module("", inputs={"0": array}, outputs={"0": out}, class_name="Small")
        recorder.gradient("fc", gradient, output="0")
        recorder.gradient("fc.weight", gradient.T @ normal)
        recorder.gradient("fc.bias", gradient.sum(0))


def test_a_step_of_numpy_is_compared_with_one_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(16, 8)
    with record(model, tmp_path / "torch", steps=[0]):
        model(x).square().mean().backward()
    foreign_run(tmp_path / "numpy", model, x, 1e-5)
    foreign_run(tmp_path / "wrong", model, x, 1e-3)
    right = compare(tmp_path / "torch", tmp_path / "numpy")
    assert right.verdict.kind == "rounding only"
    assert right.ok
    names = {row.name for row in right.rows}
    assert {"output 0 of norm", "output 0 of fc", "gradient of parameter fc.weight"} <= names
    wrong = compare(tmp_path / "torch", tmp_path / "wrong")
    assert not wrong.ok
    assert "norm" in wrong.verdict.sentence
    assert "fc" not in wrong.verdict.sentence
    assert len(wrong.zoom) == 2


@pytest.mark.parametrize("swapped", [False, True])
def test_elements_of_numpy_are_held_against_float64_of_torch_s(
    tmp_path: Path, swapped: bool
) -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(16, 8)
    with record(model, tmp_path / "torch", level="full"):
        model(x).square().mean().backward()
    foreign_run(tmp_path / "wrong", model, x, 1e-3, level="full")
    runs = [tmp_path / "torch", tmp_path / "wrong"]
    found = compare(*(reversed(runs) if swapped else runs))
    us, them = ("candidate", "reference") if swapped else ("reference", "candidate")
    assert found.verdict.kind == "different program"
    assert found.verdict.run == them
    assert found.verdict.sentence == (
        f"output 0 of norm differs by more than rounding explains, and the {us}'s 1 operator there "
        f"(native_layer_norm) is right by float64 replay: the {them}'s framework computes "
        "something else there, or its program asks for something else"
    )
    assert found.zoom == ()  # nothing more to record
    worst = found.row("output 0 of norm").elements[0]
    ours, theirs = getattr(worst, us), getattr(worst, them)
    assert abs(theirs - worst.exact) > 2 * abs(ours - worst.exact)
    assert worst.ulps > 100
    assert any(fact.startswith(f"element {list(worst.index)}: ") for fact in found.verdict.evidence)

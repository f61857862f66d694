"""ONNX Runtime as an engine: exported, aligned by the exporter's notes, recorded, judged."""

import builtins
import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import accel
from accel.attention import onnx_translations, window
from accel.errors import BackendError
from accel.numerics import load_recording
from accel.numerics.onnx_runs import (
    OPTIMIZATIONS,
    export_forward,
    record_onnxruntime,
    run_onnxruntime,
    why_absent,
)
from accel.testing import onnx_engine

UNIT = 2.0**-24  # of float32


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.up = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Decoder(nn.Module):
    """Shared modules (one norm per block is called twice), tied weights, two outputs."""

    def __init__(self, tokens: int = 61, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, text: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.blocks(self.embedding(text))
        return {"logits": self.head(hidden) * scale, "hidden": hidden}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Decoder().eval()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return (torch.randint(61, (3, 33)),), {"scale": torch.rand(61)}


@pytest.fixture(scope="module")
def exported(model, inputs):
    return export_forward(model, *inputs)


# --- alignment ---------------------------------------------------------------------------------


def test_every_operator_is_aligned(exported) -> None:
    tensors = [
        node.name
        for node in exported.program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    ]
    assert len(tensors) > 50
    assert set(tensors) <= set(exported.names)


class Attending(nn.Module):
    """Both forms that Accel's attention has in ONNX: an operator of the runtime and scans."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        for n in range(3):  # names that a scan might give its own numbers
            self.register_parameter(f"block_{n}", nn.Parameter(torch.randn(8)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        q = q + self.block_0 + self.block_1 + self.block_2
        found = accel.segmented_attention(q, k, v, is_causal=True)
        for reach in (5, 20):
            found = found + accel.segmented_attention(q, k, v, mask=window(reach, 0))
        return found


def test_attention_of_accel_is_taken_by_its_translations_and_judged(tmp_path) -> None:
    model, x = Attending().eval(), torch.randn(2, 150, 32)
    with pytest.raises(BackendError, match="segmented_attention"):
        export_forward(model, (x,))
    record_onnxruntime(model, (x,), tmp_path / "onnx", translations=onnx_translations())
    exported = export_forward(model, (x,), translations=onnx_translations())
    with pytest.raises(ValueError, match="has been translated"):
        record_onnxruntime(exported, path=tmp_path / "other", translations=onnx_translations())
    assert not (tmp_path / "other").exists()
    with torch.no_grad(), accel.numerics.record(model, tmp_path / "torch", level="full"):
        model(x)
    replay = accel.numerics.replay(tmp_path / "onnx")
    (step,) = replay.steps
    calls = [one for one in step.operators if "segmented_attention" in one.key.op]
    assert [one.judged.verdict for one in calls] == ["within"] * 3
    assert replay.out == ()
    compared = accel.numerics.compare(tmp_path / "torch", tmp_path / "onnx")
    rows = [row for row in compared.rows if "segmented_attention" in row.name]
    assert [row.status for row in rows if row.name.endswith("output 0")] == ["rounding"] * 3


def test_a_module_called_in_several_ways_is_said_and_its_operators_are_there(tmp_path) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = torch.relu(self.layer(x))
            return y if mask is None else y * mask

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x), mask=x)

    record_onnxruntime(Outer(), (torch.randn(3, 4),), tmp_path / "run")
    step = only_step(tmp_path / "run")
    assert [s.what for s in step.skipped] == [
        "inputs and outputs of inner[1]",
        "inputs and outputs of inner[0]",
    ]
    keys = {str(key) for key in step.by_key}
    assert {"forward:inner/relu#0", "forward:inner[1]/relu#0", "forward:inner[1]/mul#0"} <= keys
    layer = {c.call: c for c in step.modules if c.module == "inner.layer"}
    assert sorted(layer) == [0, 1]
    assert all(c.inputs and c.outputs for c in layer.values())


def only_step(path: Path):
    recording = load_recording(path)
    assert recording.ranks[0].manifest.complete
    (step,) = recording.ranks[0].steps.values()
    return step


# --- recordings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(model, inputs, exported, tmp_path_factory):
    """The same forward by torch and by ONNX Runtime."""
    folder = tmp_path_factory.mktemp("onnx")
    args, kwargs = inputs
    with torch.no_grad(), accel.numerics.record(model, folder / "torch", level="full"):
        model(*args, **kwargs)
    record_onnxruntime(exported, path=folder / "onnxruntime")
    return folder / "torch", folder / "onnxruntime"


def test_operators_and_module_calls_have_the_names_that_torch_gives_them(runs) -> None:
    ours, theirs = (only_step(path) for path in runs)
    assert [str(op.key) for op in theirs.operators] == [str(op.key) for op in ours.operators]
    calls = [
        {(c.module, c.call): (c.class_name, set(c.inputs), set(c.outputs)) for c in step.modules}
        for step in (ours, theirs)
    ]
    assert calls[0] == calls[1]
    sources = [{(s.kind, s.name) for s in step.sources.values()} for step in (ours, theirs)]
    assert sources[1] <= sources[0]
    assert ("input", "scale") in sources[1]


def test_values_at_module_boundaries_are_near_torchs(runs) -> None:
    ours, theirs = (only_step(path) for path in runs)
    named = {(c.module, c.call): c for c in ours.modules}
    compared = 0
    for call in theirs.modules:
        for place, value in call.outputs.items():
            mine = named[call.module, call.call].outputs[place]
            if not ours.has_tensor(mine):
                continue  # a view, whose base is kept
            torch.testing.assert_close(theirs.tensor(value), ours.tensor(mine))
            compared += 1
    assert compared >= 10


def errors_of(path: Path) -> dict[tuple[str, int], float]:
    """The accumulated error of each operator's results, in units of float32's roundoff."""
    found = accel.numerics.replay(path, chained=True).steps[0].errors
    return {
        (str(operator.key), index): found[value] / UNIT
        for operator in only_step(path).operators
        for index, value in enumerate(operator.outputs)
        if value in found
    }


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
def test_both_engines_are_as_far_from_float64_at_every_operator(
    exported, model, inputs, runs, tmp_path, optimization
) -> None:
    """The error against float64 in units of roundoff is a portable quantity."""
    record_onnxruntime(exported, path=tmp_path / "run", optimization=optimization)
    ours, theirs = errors_of(runs[0]), errors_of(tmp_path / "run")
    both = ours.keys() & theirs.keys()
    assert len(both) > 35
    for key in both:
        assert theirs[key] <= 1.5 * ours[key] + 0.25, key
    # The same by other means: the model itself in float64.
    step = only_step(tmp_path / "run")
    (root,) = (call for call in step.modules if call.module == "")
    args, kwargs = inputs
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        truth = wide(*args, scale=kwargs["scale"].double())["logits"]
    error = (step.tensor(root.outputs["logits"]) - truth).norm() / truth.norm()
    assert float(error) / UNIT == pytest.approx(theirs["forward:/mul#0", 0], rel=0.02)


def test_no_operator_is_blamed_and_the_runs_differ_by_rounding(runs) -> None:
    replay = accel.numerics.replay(runs[1])
    assert replay.out == ()
    assert replay.counts["within"] >= 16
    comparison = accel.numerics.compare(*runs)
    assert comparison.verdict.kind == "rounding only"


def attribute(node, name: str, value: float | str) -> None:
    """Change an attribute of an ONNX node."""
    import onnx

    for old in [old for old in node.attribute if old.name == name]:
        node.attribute.remove(old)
    node.attribute.append(onnx.helper.make_attribute(name, value))


@pytest.mark.parametrize(
    ("op", "name", "value", "key"),
    [
        ("Gelu", "approximate", "tanh", "forward:blocks.1/gelu#0"),
        ("Gemm", "alpha", 1.0001, "forward:blocks.1.down/addmm#0"),
    ],
)
def test_a_wrong_operator_of_onnxruntime_is_named(
    model, inputs, runs, tmp_path, op, name, value, key
) -> None:
    exported = export_forward(model, *inputs)
    attribute([node for node in exported.model.graph.node if node.op_type == op][-1], name, value)
    record_onnxruntime(exported, path=tmp_path / "run")
    assert [str(one.key) for one in accel.numerics.replay(tmp_path / "run").out] == [key]
    verdict = accel.numerics.compare(runs[0], tmp_path / "run").verdict
    assert verdict.kind == "faulty operator"
    assert str(verdict.operator) == key


def test_a_transposed_weight_in_the_onnx_program_is_no_fault_of_an_operator(
    model, inputs, runs, tmp_path
) -> None:
    from onnx import numpy_helper

    exported = export_forward(model, *inputs)
    (weight,) = (w for w in exported.model.graph.initializer if w.name == "blocks.1.out.weight")
    turned = numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name)
    weight.CopyFrom(turned)
    record_onnxruntime(exported, path=tmp_path / "run")
    assert accel.numerics.replay(tmp_path / "run").out == ()
    verdict = accel.numerics.compare(runs[0], tmp_path / "run").verdict
    assert "blocks.1.out.weight" in verdict.sentence


def test_the_manifest_tells_what_ran(runs) -> None:
    manifest = load_recording(runs[1]).ranks[0].manifest
    assert manifest.framework == "onnxruntime"
    assert manifest.numerics_mode["optimization"] == "disable_all"
    assert {"onnx", "onnxruntime", "onnxscript", "torch"} <= set(manifest.versions)


def test_watching_modules_lets_onnxruntime_fuse_and_watching_operators_says_that_it_cannot(
    tmp_path,
) -> None:
    class Gelu(nn.Module):
        """In single operators, which ONNX Runtime replaces by one kernel."""

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x * (1 + torch.erf(x / 2**0.5))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 48), Gelu(), nn.Linear(48, 48)).eval()
    exported = export_forward(model, (torch.randn(64, 48),))
    record_onnxruntime(exported, path=tmp_path / "operators", optimization="all")
    record_onnxruntime(exported, path=tmp_path / "modules", optimization="all", watch="modules")
    (said,) = only_step(tmp_path / "operators").skipped
    assert "with operators watched, 1 of its 1 outputs have other bits" in said.reason
    step = only_step(tmp_path / "modules")
    assert step.skipped == ()
    outputs = {c.module: step.tensor(c.outputs["0"]) for c in step.modules}
    plain = run_onnxruntime(exported, optimization="all")
    assert torch.equal(outputs[""], next(iter(plain.values())))
    inside = [op for op in step.operators if op.key.module == "1"][:-1]
    assert inside
    for operator in inside:
        for value in operator.outputs:
            assert not step.has_tensor(value)
            assert "fuse" in step.values[value].skipped


def test_at_level_sketch_no_elements_are_kept(exported, tmp_path) -> None:
    record_onnxruntime(exported, path=tmp_path / "run", level="sketch")
    step = only_step(tmp_path / "run")
    assert not any(value.blob for value in step.values.values())
    assert sum(value.sketch is not None for value in step.values.values()) > 30
    assert not list((tmp_path / "run").rglob("*.safetensors"))


# --- the engine of the conformance suite -------------------------------------------------------


def test_the_suite_has_an_engine_without_and_one_with_rewriting(model, inputs, tmp_path) -> None:
    found = {engine.name: engine for engine in onnx_engine.engines()}
    assert set(found) == {"onnxruntime/disable_all", "onnxruntime/all"}
    engine = found["onnxruntime/all"]
    assert engine.absent is None
    assert engine.dtypes == (torch.float32,)
    args, _ = inputs
    engine.record(nn.Sequential(model.embedding, model.blocks), args, tmp_path / "run")
    manifest = load_recording(tmp_path / "run").ranks[0].manifest
    assert (manifest.level, manifest.numerics_mode["optimization"]) == ("full", "all")
    assert accel.numerics.replay(tmp_path / "run").ok


# --- refusals ----------------------------------------------------------------------------------


def test_random_numbers_are_refused(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"draws random numbers .*model\.eval\(\)"):
        export_forward(model.train(), (torch.randn(2, 4),))
    assert export_forward(model.eval(), (torch.randn(2, 4),)).names


def test_dtypes_without_kernels_are_refused_by_name() -> None:
    model = nn.Linear(4, 4).to(torch.bfloat16)
    exported = export_forward(model, (torch.randn(2, 4, dtype=torch.bfloat16),))
    with pytest.raises(accel.BackendError, match="Linear with parameters in bfloat16"):
        run_onnxruntime(exported)


def test_an_operator_without_counterpart_is_refused_by_name() -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.airy_ai(x)

    with pytest.raises(accel.BackendError, match=r"Special cannot be exported.*special_airy_ai"):
        export_forward(Special(), (torch.randn(3),))


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is on meta.*give a copy"):
        export_forward(nn.Linear(2, 2, device="meta"), (torch.randn(1, 2),))
    with pytest.raises(ValueError, match="an input is on meta"):
        export_forward(nn.Linear(2, 2), (torch.randn(1, 2, device="meta"),))


@pytest.mark.parametrize(
    ("option", "value"), [("optimization", "most"), ("watch", "nodes"), ("level", "check")]
)
def test_unknown_options_are_refused(exported, tmp_path, option, value) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*'{value}'"):
        record_onnxruntime(exported, path=tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_the_command(monkeypatch) -> None:
    assert why_absent() is None
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.split(".")[0] == "onnxscript":
            raise ImportError("no such package")
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.split(".")[0] == "onnxscript"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", blocked)
    absent = why_absent()
    assert absent is not None
    assert absent.startswith("onnxscript cannot be imported")
    assert absent.endswith('pip install "accel-torch[onnx]"')
    assert {engine.absent for engine in onnx_engine.engines()} == {absent}
    with pytest.raises(accel.BackendError, match="onnxscript cannot be imported"):
        export_forward(nn.Linear(2, 2), (torch.randn(1, 2),))

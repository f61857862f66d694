"""Attention exported to ONNX and run by ONNX Runtime: exact, and linear in memory."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import accel
from accel import BackendError
from accel.attention import (
    alibi,
    causal,
    documents,
    key_lengths,
    onnx_translations,
    relative_bias,
    window,
)
from accel.testing import assert_within_budget

pytestmark = [
    pytest.mark.without_npu,
    # torch.onnx itself uses what torch deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # Two inputs have one dynamic length, which has one name.
    pytest.mark.filterwarnings("ignore:.*shares the same shape constraints.*:UserWarning"),
]
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor):
        found = accel.segmented_attention(query, key, value, **self.options)
        return tuple(found) if self.options.get("return_lse") else found


def draw(queries: int, keys: int, value_size: int = 16, dtype=torch.float32) -> list[Tensor]:
    shapes = [(2, 4, queries, 16), (2, 2, keys, 16), (2, 2, keys, value_size)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def exported(model: nn.Module, inputs: list[Tensor], same_length: bool, path):
    """Exported with dynamic lengths, and opened."""
    queries = torch.export.Dim("queries", min=2)
    keys = queries if same_length else torch.export.Dim("keys", min=2)
    program = torch.onnx.export(
        model.eval(), tuple(inputs), dynamo=True, verbose=False,
        dynamic_shapes=({2: queries}, {2: keys}, {2: keys}),
        custom_translation_table=onnx_translations(),
    )  # fmt: skip
    program.save(path)
    kinds = {node.op_type for node in program.model.graph}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, kinds


def run(session, inputs: list[Tensor]) -> list[Tensor]:
    names = [one.name for one in session.get_inputs()]
    fed = dict(zip(names, (t.numpy() for t in inputs), strict=True))
    return [torch.from_numpy(found) for found in session.run(None, fed)]


CASES = {
    "full": ({}, 0, "Scan"),
    "causal": ({"is_causal": True}, 0, "GroupQueryAttention"),
    "causal, grown cache": ({"is_causal": True}, 13, "Scan"),
    "window with sinks": ({"mask": window(5, 0, sinks=2)}, 0, "Scan"),
    "documents": ({"mask": documents([0, 10, 37], within=causal())}, 0, "Scan"),
    "a row that sees nothing": ({"mask": key_lengths([0, 33]) & causal()}, 0, "Scan"),
    "dense by key": ({"mask": torch.rand(2, 1, 1, 1) < 2}, 0, "Scan"),
    "alibi": ({"bias": alibi(torch.rand(4)), "is_causal": True}, 0, "Scan"),
    "relative, softcap": (
        {"bias": relative_bias(torch.randn(4, 9)), "softcap": 2.0, "scale": -0.3},
        4,
        "Scan",
    ),
    "log-sum-exp": ({"return_lse": True, "is_causal": True}, 0, "Scan"),
}


@pytest.mark.parametrize(("options", "more", "kind"), CASES.values(), ids=CASES)
def test_onnx_runtime_agrees(options, more, kind, tmp_path) -> None:
    """At the length that was exported and at another, each against float64."""
    model = Attention(**options)
    session, kinds = exported(model, draw(37, 37 + more), more == 0, tmp_path / "model.onnx")
    assert kind in kinds
    assert "Attention" not in kinds
    for queries in (37, 150):
        inputs = draw(queries, queries + more)
        found, ours = run(session, inputs), model(*inputs)
        truth = model(*(t.double() for t in inputs))
        ours, truth = ((x,) if isinstance(x, Tensor) else x for x in (ours, truth))
        for theirs, mine, exact in zip(found, ours, truth, strict=True):
            some = torch.isfinite(exact)
            assert torch.equal(torch.isfinite(theirs), some)
            assert_within_budget(theirs[some], mine[some], exact[some])


def test_another_value_head_size_and_half_precision(tmp_path) -> None:
    model = Attention(is_causal=True)
    inputs = draw(37, 37, 8, torch.float16)
    session, kinds = exported(model, inputs, True, tmp_path / "model.onnx")
    assert "Scan" in kinds
    (found,) = run(session, inputs)
    assert found.dtype == torch.float16
    assert_within_budget(found, model(*inputs), model(*(t.double() for t in inputs)))


def test_dropout_is_refused(tmp_path) -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Attention(dropout_p=0.1), draw(37, 37), True, tmp_path / "model.onnx")
    reasons, error = [], caught.value
    while error is not None:
        reasons.append(error)
        error = error.__cause__
    assert any(isinstance(r, BackendError) and "dropout_p" in str(r) for r in reasons)
    assert not (tmp_path / "model.onnx").exists()


MEASURE = """
import sys
import onnxruntime, torch, accel
path, length = sys.argv[1], int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
def feed(n):
    shapes = [(1, 4, n, 16), (1, 2, n, 16), (1, 2, n, 16)]
    names = [one.name for one in session.get_inputs()]
    return {name: torch.randn(s).numpy() for name, s in zip(names, shapes)}
session.run(None, feed(64))
inputs = feed(length)
device = accel.current_device()
device.reset_peak_memory()
before = device.memory().used
session.run(None, inputs)
print(device.memory().peak - before)
"""


@pytest.mark.parametrize("options", [{"is_causal": True}, {"mask": window(99, 0)}], ids=str)
def test_memory_grows_linearly(options, tmp_path) -> None:
    """The score matrix of 8,192 tokens and four heads alone would take a gigabyte."""
    path = tmp_path / "model.onnx"
    small = [torch.randn(1, h, 37, 16) for h in (4, 2, 2)]
    exported(Attention(**options), small, True, path)

    def extra(length: int) -> int:
        command = [sys.executable, "-c", MEASURE, str(path), str(length)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    short, long = extra(2048), extra(8192)
    assert long < 5 * short + 10e6
    assert long < 150e6

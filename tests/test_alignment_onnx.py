"""Encoders exported to ONNX and run by ONNX Runtime: the same embeddings and the same ranks."""

from __future__ import annotations

import copy
import logging
import os
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel import BackendError
from accel.alignment.aligner import Aligner
from accel.alignment.evaluation.ranking import retrieval_ranks
from accel.testing import assert_within_budget

pytestmark = pytest.mark.without_npu
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from accel.alignment.onnx_export import export_onnx  # noqa: E402 - after what may skip it


class Words(nn.Module):
    """The mean of the embeddings of those words that are there; two inputs in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(60, 24), nn.Linear(24, 32)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["mask"][..., None]
        mean = (self.table(inputs["ids"]) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.out(mean)


def picture_encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(150, 40),
    )  # fmt: skip


PATTERNS = torch.randn(60, 5, 5, generator=torch.Generator().manual_seed(5))


def draw(n: int) -> dict[str, object]:
    """Words, and pictures in which the pattern of each word is added."""
    ids = torch.randint(0, 60, (n, 5))
    mask = (torch.rand(n, 5) < 0.8).float()
    picture = torch.einsum("nw,nwhk->nhk", mask, PATTERNS[ids])[:, None]
    return {"text": {"ids": ids, "mask": mask}, "image": picture + 0.1 * torch.randn(n, 1, 5, 5)}


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    """Trained a little, and left in training mode."""
    torch.manual_seed(0)
    model = Aligner(
        {"text": Words(), "image": picture_encoder()}, dim=16, projection="linear",
        features={"text": 32, "image": 40},
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        batch = draw(64)
        x, y = (model.encode(name, batch[name]) for name in ("text", "image"))
        loss = F.cross_entropy(14 * x @ y.T, torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def files(aligner, tmp_path_factory) -> dict[str, str]:
    folder, example = tmp_path_factory.mktemp("onnx"), draw(3)
    paths = {name: str(folder / f"{name}.onnx") for name in aligner.modalities}
    for name, path in paths.items():
        export_onnx(aligner, name, example[name], path)
    assert sorted(os.listdir(folder)) == ["image.onnx", "text.onnx"]
    assert aligner.training
    assert aligner.encoders["image"][4].training
    return paths


def run(path: str, inputs: object, modality: str) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["embedding"]
    assert session.get_outputs()[0].shape == ["batch", 16]
    assert all(one.shape[0] == "batch" for one in session.get_inputs())
    given = inputs if isinstance(inputs, dict) else {"": inputs}
    fed = {f"{modality}_{key}" if key else modality: value for key, value in given.items()}
    assert {one.name for one in session.get_inputs()} == fed.keys()
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in fed.items()})[0])


@pytest.mark.parametrize("n", [1, 2, 63, 500])
def test_embeddings_and_ranks_are_the_same(aligner, files, n: int) -> None:
    batch = draw(n)
    model = _evaluated(aligner)
    exact = _evaluated(aligner).double()
    found, ours = {}, {}
    for name in model.modalities:
        inputs = batch[name]
        wide = (
            {"ids": inputs["ids"], "mask": inputs["mask"].double()}
            if name == "text"
            else inputs.double()
        )
        with torch.no_grad():
            ours[name], truth = model.encode(name, inputs), exact.encode(name, wide)
        found[name] = run(files[name], inputs, name)
        assert_within_budget(found[name], ours[name], truth, name=name)
    for a, b in (("text", "image"), ("image", "text")):
        ranks = retrieval_ranks(found[a], found[b])
        assert torch.equal(ranks, retrieval_ranks(ours[a], ours[b]))
    if n == 500:
        assert ranks.double().mean() < 150  # and they mean something: by chance it is 250


def _evaluated(aligner: Aligner) -> Aligner:
    return copy.deepcopy(aligner).eval()


def test_the_file_is_a_valid_model(files) -> None:
    model = onnx.load(files["image"])
    onnx.checker.check_model(model, full_check=True)
    held = {name for one in model.graph.initializer for name in [one.name]}
    assert not any("text" in name for name in held)  # only what this encoder needs


class Odd(nn.Module):
    """What cannot be exported, each in its own way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(5, 8)
        self.rows = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        if self.kind == "view":
            return out.view(4, 8)
        if self.kind == "constant":
            return self.rows * x.sum()
        if self.kind == "branch":
            return out if x.shape[0] > 3 else -out
        if self.kind == "fold":
            return out.reshape(-1, 2, 8).sum(1)
        return out * torch.linalg.eigvalsh(x.T @ x).sum()


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("view", ValueError, "alike for every number of rows"),
        ("branch", ValueError, "alike for every number of rows"),
        ("constant", ValueError, "fixes the number of rows at 4"),
        ("fold", ValueError, "2 embeddings of 4 rows"),
        ("operator", BackendError, "eigh.*replace that operator"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_error(kind, error, message, tmp_path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_text("what was there before")
    model = Aligner({"x": Odd(kind), "y": nn.Linear(5, 8)}, dim=8)
    with pytest.raises(error, match=message) as caught:
        export_onnx(model, "x", torch.randn(4, 5), path)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_text() == "what was there before"
    assert os.listdir(tmp_path) == ["odd.onnx"]


@pytest.mark.parametrize(
    ("modality", "inputs", "error", "message"),
    [
        ("smell", torch.randn(3, 5), ValueError, "no modality 'smell'; there are x, y"),
        ("x", torch.randn(1, 5), ValueError, "at least 2 rows"),
        ("x", torch.tensor(1.0), ValueError, "at least 2 rows"),
        ("x", {"a": torch.randn(3, 5), "b": torch.randn(2, 5)}, ValueError, "2, 3"),
        ("x", ["a", "b"], TypeError, "must be tensors.*str"),
        ("x", [], TypeError, "nothing"),
    ],
)
def test_bad_arguments(modality, inputs, error, message, tmp_path) -> None:
    model = Aligner({"x": nn.Linear(5, 8), "y": nn.Linear(5, 8)}, dim=8)
    with pytest.raises(error, match=message):
        export_onnx(model, modality, inputs, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said_first(tmp_path) -> None:
    model = Aligner({"x": nn.Linear(5, 8), "y": nn.Linear(5, 8)}, dim=8)
    with pytest.raises(OSError, match="cannot write"):
        export_onnx(model, "x", torch.randn(3, 5), tmp_path / "nowhere" / "x.onnx")


def test_names_that_operators_have_too(tmp_path) -> None:
    """The exporter names values after operators, and would let two have one name."""
    model = Aligner({"linear": nn.Linear(5, 8), "embedding": nn.Embedding(9, 8)}, dim=8)
    x, ids = torch.randn(3, 5), torch.randint(0, 9, (3,))
    for name, inputs in (("linear", x), ("embedding", ids)):
        path = str(tmp_path / f"{name}.onnx")
        if name == "embedding":
            with pytest.raises(ValueError, match="call the modality something else"):
                export_onnx(model, name, inputs, path)
            continue
        export_onnx(model, name, inputs, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {name: inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model.encode(name, inputs).detach())


def test_without_the_packages_the_command_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model = Aligner({"x": nn.Linear(5, 8), "y": nn.Linear(5, 8)}, dim=8)
    with pytest.raises(BackendError, match=r"accel-torch\[onnx\]"):
        export_onnx(model, "x", torch.randn(3, 5), tmp_path / "x.onnx")


def test_the_exporter_leaves_logging_as_it_was(aligner, tmp_path) -> None:
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    export_onnx(aligner, "image", draw(2)["image"], tmp_path / "x.onnx")
    assert logger.level == before


def test_what_wraps_an_aligner_is_refused_with_the_way_out(tmp_path) -> None:
    wrapped = nn.Sequential(nn.Identity())
    with pytest.raises(TypeError, match=r"not Sequential: of what wraps one give its \.aligner"):
        export_onnx(wrapped, "image", torch.zeros(2, 3), tmp_path / "image.onnx")
    assert not list(tmp_path.iterdir())

"""Comparisons of recorded training steps, and of a window recorded again by the printed command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.cli import main
from accel.numerics import Comparison, compare, record
from tests.numerics.numerics_zoo import (
    Attention,
    LanguageModel,
    case,
    made,
    one_thread,  # noqa: F401
    recorded,
    threads,
)

ROOT = Path(__file__).parents[2]
Kernel = Callable[..., Any]


class Faulty(TorchDispatchMode):
    """Another kernel for the `at`-th call of an operator; entered before the recorder."""

    def __init__(self, op: str, kernel: Kernel, at: int) -> None:
        super().__init__()
        self.op, self.kernel, self.at, self.seen = op, kernel, at, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(f"aten.{self.op}."):
            self.seen += 1
            if self.seen == self.at + 1:
                return self.kernel(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Composed(Attention):
    """The same attention by its formula."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


class WithoutRule(nn.Module):
    """A linear layer that autocast leaves alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch._C._DisableAutocast():
            return F.linear(x.float(), self.weight, self.bias)


def language() -> LanguageModel:
    model = made(case("language").model)
    assert isinstance(model, LanguageModel)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from the initialisation, where much is zero
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    with threads(1):
        for level in ("full", "sketch"):
            recorded(path / level, case("language"), model=language(), level=level)
        recorded(path / "autocast", case("language"), model=language(), level="full", autocast=True)
    return path


def against(
    runs: Path, path: Path, model: nn.Module, reference: str = "full", **options: Any
) -> Comparison:
    level = "sketch" if reference == "sketch" else "full"
    recorded(path / "b", options.pop("one", case("language")), model=model, level=level, **options)
    return compare(runs / reference, path / "b")


# --- benign ---------------------------------------------------------------------------------------


@contextmanager
def onednn_off() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("reference", ["full", "sketch"])
@pytest.mark.parametrize("what", ["again", "threads", "onednn", "composed"])
def test_right_runs_agree(runs: Path, tmp_path: Path, what: str, reference: str) -> None:
    model = language()
    if what == "composed":
        for block in model.blocks:
            block.attention.__class__ = Composed
    around = {"threads": lambda: threads(2), "onednn": onednn_off}.get(what, lambda: threads(1))
    with around():
        recorded(tmp_path / "b", case("language"), model=model, level=reference)
    found = compare(runs / reference, tmp_path / "b")
    assert found.ok, found.to_text()
    if what == "again":
        assert found.verdict.kind == "same"
    if what == "composed":
        assert found.verdict.kind == "rounding only"
        assert found.unmatched
        assert any(row.aligned == "content" for row in found.rows)


def test_both_runs_are_held_against_the_step_in_float64(runs: Path, tmp_path: Path) -> None:
    with Faulty("gelu", tanh_gelu, at=0):
        found = against(runs, tmp_path, language())
    rows = [row for row in found.rows if row.key is not None and row.candidate and row.reference]
    strayed = [
        (left.accumulated, right.accumulated)
        for row in rows
        if (left := row.reference) is not None and (right := row.candidate) is not None
    ]
    assert sum(None not in pair for pair in strayed) > 0.9 * len(rows)
    faulty = next(i for i, row in enumerate(rows) if row.name.endswith("mlp.1/gelu#0"))
    for left, right in strayed[:faulty]:
        assert left is None or left == right  # all the same before it, and not far from float64
        assert left is None or left < 100.0
    left, right = strayed[faulty]
    assert left is not None
    assert right is not None
    assert right > 100 * left
    # A window has no graph that starts from the step's sources.
    recorded(tmp_path / "c", case("language"), model=language(), level="full", only=["blocks.1.*"])
    window = compare(runs / "full", tmp_path / "c")
    assert any(row.candidate is not None for row in window.rows)
    assert all(row.candidate is None or row.candidate.accumulated is None for row in window.rows)


# --- what the issue names -------------------------------------------------------------------------


def test_a_transposed_weight(runs: Path, tmp_path: Path) -> None:
    model = language()
    with torch.no_grad():
        weight = model.get_parameter("blocks.1.attention.out.weight")
        weight.copy_(weight.t().clone())
    found = against(runs, tmp_path, model)
    assert found.verdict.kind == "different weight/input"
    assert found.verdict.sentence == "the parameter blocks.1.attention.out.weight is transposed"
    # From sketches alone it is told from a changed one all the same.
    recorded(tmp_path / "c", case("language"), model=model, level="sketch")
    found = compare(runs / "sketch", tmp_path / "c")
    assert found.verdict.kind == "different weight/input"


def test_permuted_tokens(runs: Path, tmp_path: Path) -> None:
    one = case("language")
    permuted = one._replace(inputs=one.inputs[:, torch.randperm(16)])
    found = against(runs, tmp_path, language(), "sketch", one=permuted)
    assert found.verdict.kind == "different weight/input"
    assert "input 0" in found.verdict.sentence
    assert "another order" in found.verdict.sentence


@pytest.mark.parametrize("reference", ["full", "sketch"])
def test_a_changed_eps(runs: Path, tmp_path: Path, reference: str) -> None:
    model = language()
    model.blocks[1].norm1.eps = 1e-6
    found = against(runs, tmp_path, model, reference)
    assert found.verdict.kind == "different program"
    assert found.verdict.operator is not None
    assert found.verdict.operator.module == "blocks.1.norm1"
    assert "eps is 1e-06 where the reference has 1e-05" in found.verdict.sentence


def test_one_autocast_rule_missing(runs: Path, tmp_path: Path) -> None:
    model = language()
    model.blocks[1].mlp[2] = WithoutRule(model.blocks[1].mlp[2])
    found = against(runs, tmp_path, model, "autocast", autocast=True)
    assert found.verdict.kind == "different switch"
    assert found.verdict.operator is not None
    assert found.verdict.operator.module == "blocks.1.mlp.2"
    assert "computes in float32 where the reference computes in bfloat16" in found.verdict.sentence


def narrowed(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        return tensor
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 2047 + ((bits >> 12) & 1)) & -(1 << 12)).view(torch.float32)


def test_hf32_in_one_layer(runs: Path, tmp_path: Path) -> None:
    def hf32(func: Any, *args: Any, **kwargs: Any) -> Any:
        return func(*map(narrowed, args), **kwargs)

    with Faulty("addmm", hf32, at=3):
        found = against(runs, tmp_path, language())
    assert found.verdict.kind == "different switch"
    assert "computes in HF32" in found.verdict.sentence
    assert str(found.verdict.operator) == "forward:blocks.0.mlp.2/addmm#0"


# --- faulty kernels -------------------------------------------------------------------------------


def tanh_gelu(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, approximate="tanh")


def other_eps(func: Any, x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    return func(x, shape, weight, bias, 1e-3)


def an_element(func: Any, *args: Any, **kwargs: Any) -> Any:
    result = func(*args, **kwargs)
    result.view(-1)[7] *= 1.01
    return result


KERNELS: dict[str, tuple[str, Kernel, int, str]] = {
    "gelu": ("gelu", tanh_gelu, 1, "forward:blocks.1.mlp.1/gelu#0"),
    "its gradient": ("gelu_backward", tanh_gelu, 0,
                     "backward:blocks.1.mlp.1/gelu#0/gelu_backward#0"),
    "norm": ("native_layer_norm", other_eps, 2, "forward:blocks.1.norm1/native_layer_norm#0"),
    "product": ("addmm", an_element, 5, "forward:blocks.1.attention.out/addmm#0"),
    "weight gradient": ("mm", an_element, 1, "backward:head/t#0/mm#0"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["gelu", "its gradient", "norm", "product"])
def test_a_faulty_kernel_is_named(runs: Path, tmp_path: Path, name: str) -> None:
    op, kernel, at, key = KERNELS[name]
    with Faulty(op, kernel, at):
        found = against(runs, tmp_path, language())
    assert found.verdict.kind == "faulty operator"
    assert str(found.verdict.operator) == key
    assert found.verdict.place is not None
    faulty = (r.key for r in found.rows if r.candidate and r.candidate.verdict == "faulty")
    assert str(next(faulty)) == key


def test_the_attribution_predicts_the_loss(runs: Path, tmp_path: Path) -> None:
    with Faulty("addmm", an_element, at=5):
        found = against(runs, tmp_path, language())
    assert found.attribution is not None
    assert found.attribution.linear is True
    key = "forward:blocks.1.attention.out/addmm#0"
    assert str(found.attribution.contributions[0][0]) == key
    assert found.row(key).contribution == pytest.approx(found.attribution.contributions[0][1])


def test_a_check_recording_is_judged_without_elements(runs: Path, tmp_path: Path) -> None:
    with Faulty("gelu", tanh_gelu, at=0):
        recorded(tmp_path / "b", case("language"), model=language(), level="check")
    found = compare(runs / "sketch", tmp_path / "b")
    assert found.verdict.kind == "faulty operator"
    assert str(found.verdict.operator) == "forward:blocks.0.mlp.1/gelu#0"
    assert found.levels == ("sketch", "check")


# --- zoom -----------------------------------------------------------------------------------------

PROGRAM = """
import sys

import torch

sys.path[:0] = {root!r}, {root!r} + "/kernels"
from tests.numerics.test_numerics_compare_runs import run_program

torch.set_num_threads(1)
run_program(sys.argv[1])
"""


def run_program(name: str, **options: Any) -> None:
    """What the program does: `b` has a faulty kernel."""
    model, one = language(), case("language")
    op, kernel, at, _ = KERNELS["product"]
    with Faulty(op, kernel, at if name == "b" else 10**6), record(model, name, **options):
        one.loss(model(one.inputs)).backward()


def test_zoom_names_the_operator_with_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(PROGRAM.format(root=str(ROOT)))
    for name in ("a", "b"):
        run_program(name, arguments=["train.py", name])
    assert main(["compare", "a", "b"]) == 3
    said = capsys.readouterr().out
    key, words = "forward:blocks.1.attention.out/addmm#0", "addmm in blocks.1.attention.out"
    assert f"{words} (" in said
    commands = [line.strip() for line in said.splitlines() if line.startswith("  accel record")]
    assert len(commands) == 2
    for command in commands:
        given = shlex.split(command)[1:]
        given[given.index("python")] = sys.executable
        done = accel(tmp_path, *given)
        assert done.returncode == 0, done.stderr
    assert main(["compare", "a-zoom", "b-zoom", "--json", "r.json"]) == 1
    assert capsys.readouterr().out.startswith(f"Faulty operator: the candidate's {words} (")
    found = json.loads(Path("r.json").read_text())
    row = next(row for row in found["rows"] if row["name"] == key)
    worst = row["elements"][0]
    assert worst["index"] == [0, 7]
    assert worst["reference"] == pytest.approx(worst["exact"], rel=1e-5)
    assert worst["candidate"] == pytest.approx(1.01 * worst["exact"], rel=1e-5)
    # Only the window was kept.
    kept = [row["name"] for row in found["rows"] if row["candidate"] is not None]
    assert 1 <= len(kept) < 10


def accel(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, "-m", "accel", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )

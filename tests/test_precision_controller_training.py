"""The controller in training: faults are found, mended, forgotten; resumed to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel.precision.controller import Controller, ControllerConfig, Decision, Operand, replay
from accel.precision.fp8 import convert_linears, linear_states
from accel.precision.policy import PRESETS
from tests.precision_controller_faults import Outlier, Underflow

# Each spoilt operand is in two of the twelve products in FP8: a third of them, and some rows more.
CONFIG = ControllerConfig(interval=10, confirm=3, calm=2, cooldown=20, budget=0.35)
STEPS, FIRST, LAST = 150, 10, 120  # steps in which both faults act: FIRST to LAST - 1
SPOILT = Operand("blocks.0.up", "input"), Operand("blocks.1.down", "gradient")
TEXT = "".join(topics[name] for name in sorted(topics))
CHARACTERS = sorted(set(TEXT))
CODES = torch.tensor([CHARACTERS.index(one) for one in TEXT[:200_000]])
SEEN, CONTEXT = 180_000, 8


class Block(nn.Module):
    """A feed-forward layer on a normalised residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class NextCharacter(nn.Module):
    """The next character from the eight before it."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), width // CONTEXT)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CHARACTERS))

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(codes).flatten(1))))


def batch_of(
    step: int, seed: int, *, size: int = 512, unseen: bool = False
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10_000 * seed + step)
    low, high = (SEEN, len(CODES)) if unseen else (0, SEEN)
    at = torch.randint(low, high - CONTEXT, (size,), generator=generator)
    window = CODES[at[:, None] + torch.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, -1]


class Run:
    """A model in training, under a policy, with or without a controller."""

    def __init__(
        self, policy: str, seed: int = 0, *, log: Path | None = None, controlled: bool = False
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.step = seed, 0
        self.model = NextCharacter()
        blocks = self.model.blocks
        self.faults = Outlier(blocks[0].up), Underflow(blocks[1].down)
        resolution = dataclasses.replace(PRESETS[policy], emulate=True).resolve(self.model)
        convert_linears(self.model, resolution.values())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 2e-3, STEPS)
        self.controller = None
        if controlled:
            self.controller = Controller(linear_states(self.model), CONFIG, log=log)
        self.decisions: list[Decision] = []

    def loss(self, codes: Tensor, expected: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(self.model(codes).float(), expected)

    def train(self, until: int) -> Run:
        for step in range(self.step, until):
            for fault in self.faults:
                fault.active = FIRST <= step < LAST
            self.optimizer.zero_grad()
            self.loss(*batch_of(step, self.seed)).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            if self.controller is not None:
                self.decisions += self.controller.after_step()
        self.step = until
        return self

    def validation_loss(self) -> float:
        for fault in self.faults:
            fault.active = False
        with torch.no_grad():
            return self.loss(*batch_of(0, 0, size=8192, unseen=True)).item()

    def state_dict(self) -> dict[str, Any]:
        """What a training script saves."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        saved = {name: part.state_dict() for name, part in parts.items()}
        layers = {name: one.state_dict() for name, one in linear_states(self.model).items()}
        return {**saved, "layers": layers, "controller": self.controller.state_dict()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        for name, one in linear_states(self.model).items():
            one.load_state_dict(state["layers"][name])
        self.controller.load_state_dict(state["controller"])
        self.step = step


class Trained(NamedTuple):
    run: Run
    log: Path
    gap: float  # of its loss over that of bfloat16
    static_gap: float


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    log = tmp_path_factory.mktemp("training") / "precision.jsonl"
    run = Run("fp8_tensorwise", log=log, controlled=True).train(STEPS)
    run.controller.close()
    wide = Run("bf16").train(STEPS).validation_loss()
    static = Run("fp8_tensorwise").train(STEPS).validation_loss()
    return Trained(run, log, run.validation_loss() / wide - 1, static / wide - 1)


def test_exactly_the_spoilt_operands_leave_within_50_steps_and_come_back(trained) -> None:
    ups = [one for one in trained.run.decisions if one.after > one.before]
    downs = [one for one in trained.run.decisions if one.after < one.before]
    assert {one.operand for one in trained.run.decisions} == set(SPOILT)
    assert [one.kind for one in trained.run.decisions] == ["promote"] * 2 + ["demote"] * 2
    assert all(FIRST <= one.step <= FIRST + 50 for one in ups)
    assert all(one.step >= LAST and one.after == 0 for one in downs)
    assert set(trained.run.controller.formats().values()) == {"float8_e4m3fn", "float8_e5m2"}
    assert list(replay(trained.log).decisions) == trained.run.decisions


def test_it_ends_where_bfloat16_does_and_the_static_policy_does_not(trained) -> None:
    """The long form, benchmarks/precision_controller.py, has several seeds and intervals."""
    assert abs(trained.gap) < 0.0025
    assert trained.static_gap > 0.05


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Run, Path]:
    """A run that ends while both operands are promoted."""
    log = tmp_path_factory.mktemp("whole") / "precision.jsonl"
    return Run("fp8_tensorwise", log=log, controlled=True).train(40), log


def test_only_the_formats_that_must_change_do(whole, trained) -> None:
    """The layers' own formats, not what the controller says of them."""
    for run, expected in ((whole[0], set(SPOILT)), (trained.run, set())):
        changed = {
            Operand(name, slot.role)
            for name, state in linear_states(run.model).items()
            for slot, form in state.formats.items()
            if form != state.plan.slots[slot]
        }
        assert changed == expected
    assert 0.0 < whole[0].controller.share <= CONFIG.budget
    assert trained.run.controller.share == 0.0


@pytest.mark.parametrize("cut", [11, 21])
def test_a_resumed_run_is_the_same_to_the_bit(whole, tmp_path, cut) -> None:
    """Cut between two suspicious readings, and after the first reading of promoted operands."""
    uncut, log = whole
    mine = tmp_path / "precision.jsonl"
    first = Run("fp8_tensorwise", log=mine, controlled=True).train(cut)
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = Run("fp8_tensorwise", seed=7, log=mine, controlled=True)
    second.seed = 0
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt"), cut)
    second.train(uncut.step)
    for name, tensor in uncut.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    assert first.decisions + second.decisions == uncut.decisions
    assert second.controller.state_dict() == uncut.controller.state_dict()
    assert mine.read_bytes() == log.read_bytes()

"""Locked towers: what stays as it is, what does not, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel.alignment import Aligner
from accel.alignment.caching.aligner import cached
from accel.alignment.transfer.locking import LockedTower, locked, unlock
from accel.precision import Precision
from tests import transfer_worker
from tests.process_groups import launched_well


class Tower(nn.Module):
    """An encoder as they usually are: a stem, blocks, and what follows them."""

    def __init__(self, dim: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(0.5)) for _ in range(blocks)
        )
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Parent(nn.Module):
    """A tower and a head, as in an aligner."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.tower(x))


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in module.state_dict().items()}


def learning(module: nn.Module) -> set[str]:
    return {name for name, one in module.named_parameters() if one.requires_grad}


def train(model: nn.Module, steps: int = 3, dim: int = 8) -> None:
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    place = parameters[0]
    for _ in range(steps):
        model.train()
        x = torch.randn(16, dim, device=place.device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


# --- what stays --------------------------------------------------------------------------------


def test_training_around_a_locked_tower_changes_nothing_in_it(device):
    model = Parent(locked(Tower())).to(device.torch_device)
    before = state_of(model)
    train(model)
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]) == name.startswith("tower."), name


def test_its_mode_stays_that_of_evaluation():
    model = Parent(locked(Tower()))
    model.train()
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.tower.modules())
    x = torch.randn(5, 8)
    assert torch.equal(model(x), model(x))  # or dropout would differ
    model.tower.train()
    assert not model.tower.training


def test_no_graph_is_kept_through_it():
    tower = locked(Tower())
    x = torch.randn(5, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        out = tower(x)
    assert not out.requires_grad
    assert out.grad_fn is None
    assert kept == []


def test_names_class_and_state_dict_stay_its_own():
    plain = Tower()
    names, keys = [name for name, _ in plain.named_parameters()], list(plain.state_dict())
    tower = locked(plain)
    assert tower is plain
    assert isinstance(tower, Tower)
    assert type(tower).__name__ == "Tower"
    assert [name for name, _ in tower.named_parameters()] == names
    assert list(tower.state_dict()) == keys
    tower.load_state_dict(Tower().state_dict())
    assert learning(tower) == set()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_locked_and_their_own(copied):
    tower = locked(Tower(), unlocked=1)
    twin = copied(tower)
    assert isinstance(twin, LockedTower)
    unlock(twin)
    assert learning(twin) == {name for name, _ in Tower().named_parameters()}
    assert learning(tower) == {"blocks.2.0.weight", "blocks.2.0.bias"}
    tower.train()
    assert tower.blocks[2].training
    assert not tower.blocks[1].training


def test_moving_and_casting_keep_the_lock(device):
    tower = locked(Tower()).to(device.torch_device, torch.bfloat16)
    out = tower.train()(torch.randn(3, 8, device=device.torch_device, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert not out.requires_grad
    assert not tower.training


def test_a_compiled_parent():
    model = Parent(locked(Tower()))
    x = torch.randn(5, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model.head.weight.grad is not None
    assert model.tower.stem.weight.grad is None


def test_a_policy_with_rules_applies_inside():
    model = Parent(locked(Tower()))
    precision = Precision(model, "compute=bfloat16\ntower.stem=float32")
    with precision.autocast():
        loss = model(torch.randn(5, 8)).square().mean()
    precision.backward(loss)
    before = state_of(model.tower)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    assert precision.step(optimizer)
    precision.close()
    assert isinstance(model.tower, LockedTower)
    assert all(torch.equal(one, before[name]) for name, one in model.tower.state_dict().items())


def test_an_encoder_of_an_aligner():
    aligner = Aligner(
        {"image": locked(Tower()), "text": nn.Linear(5, 8)}, dim=4, projection="linear",
        features={"image": 8, "text": 8},
    )  # fmt: skip
    before = state_of(aligner)
    optimizer = torch.optim.Adam([one for one in aligner.parameters() if one.requires_grad])
    for _ in range(2):
        aligner.train()
        output = aligner({"image": torch.randn(6, 8), "text": torch.randn(6, 5)})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    kept = {name for name, one in aligner.state_dict().items() if torch.equal(one, before[name])}
    assert kept == {name for name in before if name.startswith("encoders.image.")}


@pytest.mark.parametrize("head", [None, "linear"])
def test_an_encoder_of_an_aligner_whose_embeddings_are_cached(head):
    """Without a head its embeddings need no gradient at all."""
    features = {"image": 8, "text": 8} if head else None
    encoders = {"image": locked(Tower()), "text": nn.Linear(5, 8)}
    aligner = Aligner(encoders, dim=8, projection=head, features=features).double().train()
    batch = {"image": torch.randn(10, 8).double(), "text": torch.randn(10, 5).double()}
    parameters = [one for one in aligner.parameters() if one.requires_grad]
    whole = torch.autograd.grad(aligner(batch).loss, parameters)
    cached(aligner, batch, chunk_size=3).loss.backward()
    for one, gradient in zip(parameters, whole, strict=True):
        torch.testing.assert_close(one.grad, gradient)
    assert all(one.grad is None for one in encoders["image"].parameters())


# --- what is unlocked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unlocked", "names"),
    [
        (0, set()),
        (1, {"blocks.2"}),
        (2, {"blocks.1", "blocks.2"}),
        (3, {"blocks.0", "blocks.1", "blocks.2"}),
        (["blocks.2", "norm"], {"blocks.2", "norm"}),
        ("norm", {"norm"}),
    ],
)
def test_what_is_unlocked_learns_and_the_rest_stays(unlocked, names):
    model = Parent(locked(Tower(), unlocked))
    before = state_of(model.tower)
    model.train()
    for name, module in model.tower.named_modules():
        inside = any(name == one or name.startswith(f"{one}.") for one in names)
        assert module.training == inside, name
    train(model)
    for name, one in model.tower.state_dict().items():
        inside = any(name.startswith(f"{one}.") for one in names)
        assert torch.equal(one, before[name]) != inside, name


def test_a_graph_is_kept_from_the_first_unlocked_block_on():
    tower = locked(Tower(), unlocked=1)
    x = torch.randn(5, 8, requires_grad=True)
    seen = []
    for module in tower.blocks:
        module.register_forward_hook(lambda _, inputs, out: seen.append(out.requires_grad))
    tower(x).sum().backward()
    assert seen == [False, False, True]
    assert x.grad is None


@dataclass(frozen=True)
class Patches:
    """Inputs that pytree does not open, with a field that the constructor does not take."""

    pixels: torch.Tensor
    more: dict[str, Any]
    scale: float = 2.0
    total: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.pixels.sum())


class Reader(Tower):
    """A tower that takes structures."""

    def forward(self, batch, *, flag=False):
        self.seen = batch
        if isinstance(batch, Patches):
            x = batch.pixels * batch.scale + batch.total + batch.more["bias"][0]
        elif isinstance(batch, Waves):
            x = batch.samples
        else:
            x = batch["x"]
        return super().forward(x)


@dataclass
class Waves:
    """One tensor."""

    samples: torch.Tensor


@pytest.mark.parametrize("unlocked", [0, 1])
@pytest.mark.parametrize("kind", ["dict", "UserDict", "dataclass", "nested", "in a list"])
def test_no_gradient_reaches_inputs_in_any_structure(unlocked, kind):
    leaves = [torch.randn(5, 8, requires_grad=True) for _ in range(2)]
    batch = {
        "dict": {"x": leaves[0]},
        "UserDict": UserDict(x=leaves[0]),
        "dataclass": Waves(leaves[0]),
        "nested": Patches(leaves[0], {"bias": [leaves[1]]}),
        "in a list": {"x": leaves[0], "others": [Waves(leaves[1]), (UserDict(a=leaves[1]), 3)]},
    }[kind]
    tower = locked(Reader(), unlocked)
    out = tower(batch)
    assert out.requires_grad == bool(unlocked)
    if not unlocked:
        return
    assert type(tower.seen) is type(batch)
    (out.sum() + sum(one.sum() for one in leaves) * 0).backward()  # the leaves' own is zero
    assert tower.blocks[2][0].weight.grad is not None
    assert all(not one.grad.any() for one in leaves)
    if kind == "in a list":
        assert not tower.seen["others"][0].samples.requires_grad
        assert not tower.seen["others"][1][0]["a"].requires_grad
        assert batch["others"][0].samples is leaves[1]  # the caller's own stays as it is


def test_inputs_without_a_graph_are_handed_on_as_they_are():
    tower, waves = locked(Reader(), 1), Waves(torch.randn(5, 8))
    tower(waves)
    assert tower.seen is waves


def test_a_compiled_parent_of_what_is_partly_unlocked():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = locked(Reader(), 1)

        def forward(self, x):
            return self.tower(Waves(x * 2), flag=True)

    model = Head().eval()
    model.tower.train(False)
    x = torch.randn(5, 8, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert x.grad is None
    assert model.tower.blocks[2][0].weight.grad is not None


def test_blocks_of_a_sequential_and_by_name():
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert learning(locked(plain, 1)) == {"1.weight", "1.bias"}
    two = nn.Module()
    two.a, two.b = nn.ModuleList([nn.Linear(1, 1)]), nn.ModuleList([nn.Linear(1, 1)])
    assert learning(locked(two, 1, blocks="b")) == {"b.0.weight", "b.0.bias"}


def test_a_parameter_that_two_blocks_share_learns_if_one_of_them_does():
    tower = Tower()
    tower.blocks[0][0].weight = tower.blocks[2][0].weight
    locked(tower, 1)
    assert tower.blocks[0][0].weight.requires_grad
    assert not tower.blocks[0][0].bias.requires_grad


def test_unlock_gives_back_what_was_taken_and_no_more():
    tower = Tower()
    tower.stem.requires_grad_(False)
    locked(tower)
    assert learning(tower) == set()
    assert unlock(tower) is tower
    assert type(tower) is Tower
    assert "stem.weight" not in learning(tower)
    assert "norm.weight" in learning(tower)
    assert not tower.training
    assert tower.train().blocks[0].training
    assert not any(name.startswith("_locked") for name in vars(tower))
    assert learning(locked(tower, 2)) == {
        f"blocks.{n}.0.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }


# --- ranks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    launched_well(Path(transfer_worker.__file__), transfer_worker.RANKS, str(directory))
    return directory


def said(out: Path, name: str) -> list[Any]:
    return [torch.load(out / f"{name}-{rank}.pt") for rank in range(transfer_worker.RANKS)]


@pytest.mark.without_npu
def test_ddp_trains_around_it_as_one_process_does(out):
    """Under DDP, whose error for parameters without gradients would end the second step."""
    ranks, alone = said(out, "train"), transfer_worker.train(None)
    start = transfer_worker.Towers().state_dict()
    for name, one in alone["student"].items():
        assert torch.equal(ranks[0]["student"][name], ranks[1]["student"][name]), name
        torch.testing.assert_close(ranks[0]["student"][name], one)
        kept = name.startswith(("image.", "text.0", "text.1"))
        assert torch.equal(ranks[0]["student"][name], start[name]) == kept, name


@pytest.mark.without_npu
def test_teachers_of_all_ranks_are_alike_to_the_bit(out):
    (first, second), alone = said(out, "train"), transfer_worker.train(None)
    for name, one in alone["teacher"].items():
        if name == "_extra_state":
            expected = {"updates": transfer_worker.STEPS, "averages": {}}
            assert first["teacher"][name] == second["teacher"][name] == one == expected
        else:
            assert torch.equal(first["teacher"][name], second["teacher"][name]), name
            torch.testing.assert_close(first["teacher"][name], one)


@pytest.mark.without_npu
def test_sharded_teachers_follow_sharded_students(out):
    alone = transfer_worker.follow(None)
    for rank in said(out, "follow"):
        assert rank.keys() == alone.keys() == {"torch.float32", "torch.bfloat16"}
        for dtype, tensors in alone.items():
            assert len(rank[dtype]) == len(tensors) == (8 if "bfloat16" in dtype else 4)
            for one, other in zip(rank[dtype], tensors, strict=True):
                torch.testing.assert_close(one.detach(), other)


@pytest.mark.without_npu
def test_distillation_over_the_batch_of_all_ranks_is_that_of_one_process(out):
    alone = transfer_worker.distil(None)
    for rank in said(out, "distil"):
        torch.testing.assert_close(rank["loss"], alone["loss"])
        for one, other in zip(rank["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(one, other)


# --- mistakes ----------------------------------------------------------------------------------


def test_mistakes():
    tower = locked(Tower())
    with pytest.raises(ValueError, match="this Tower is locked already: unlock it first"):
        locked(tower)
    with pytest.raises(ValueError, match="this Linear is not locked"):
        unlock(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="locked takes a module, not function"):
        locked(locked)
    with pytest.raises(TypeError, match="returned a wrapper"):
        locked(torch.compile(nn.Linear(1, 1), backend="eager"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"unlocked": 4}, "blocks has 3 blocks, not 4"),
        ({"unlocked": -1}, "unlocked is how many of the last blocks, or names, not -1"),
        ({"unlocked": True}, "not True"),
        ({"unlocked": ["head"]}, "Tower has no submodule 'head'; it has stem, blocks, norm"),
        ({"unlocked": ["norm"], "blocks": "blocks"}, "give their number"),
        ({"unlocked": 1, "blocks": "stem"}, "blocks='stem' is no ModuleList or Sequential"),
    ],
)
def test_unknown_blocks(arguments, text):
    tower = Tower()
    with pytest.raises(ValueError, match=text):
        locked(tower, **arguments)
    assert type(tower) is Tower
    assert tower.stem.weight.requires_grad


def test_blocks_that_are_not_clear():
    two = nn.Module()
    two.a, two.b = nn.ModuleList([nn.Linear(1, 1)]), nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="only ModuleList or Sequential, but it has 'a', 'b'"):
        locked(two, 1)
    with pytest.raises(ValueError, match="but it has none: say which"):
        locked(nn.Linear(2, 2), 1)

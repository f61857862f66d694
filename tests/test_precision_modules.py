"""Modules whose class is swapped: still themselves, in another dtype, and back again."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from torch import nn

from accel.precision.autocast.region import ModuleRegion
from accel.precision.modules import ModuleMixin, apply_plan, restore, swap_class
from accel.precision.operand import ModulePlan

B, H, W = torch.bfloat16, torch.float16, torch.float32


class Doubled(ModuleMixin):
    swapped_state: ClassVar[tuple[str, ...]] = ("factor", "count")

    def forward(self, *args, **kwargs):
        self.count += 1
        return super().forward(*args, **kwargs) * self.factor


class Shifted(ModuleMixin):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) + 1


def doubled(module):
    swap_class(module, Doubled).factor = 2
    module.register_buffer("count", torch.zeros(()), persistent=False)
    return module


def plan(dtype, name="layer"):
    return ModulePlan(name, "Linear", dtype, {}, {})


# --- the swap ----------------------------------------------------------------------------------


def test_identity_name_state_and_class_stay():
    layer = nn.Linear(3, 4)
    state, text, x = layer.state_dict(), str(layer), torch.rand(2, 3)
    before, parameters = layer(x), list(layer.parameters())
    assert doubled(layer) is layer
    assert isinstance(layer, nn.Linear)
    assert type(layer).__name__ == "Linear"
    assert str(layer) == text
    assert layer.state_dict().keys() == state.keys()
    assert all(one is other for one, other in zip(layer.parameters(), parameters, strict=True))
    assert torch.equal(layer(x), 2 * before)
    plain = nn.Linear(3, 4)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(x), before)
    assert restore(layer) is layer
    assert type(layer) is nn.Linear
    assert not hasattr(layer, "factor")
    assert not hasattr(layer, "count")
    assert torch.equal(layer(x), before)
    assert type(restore(layer)) is nn.Linear  # a second time, nothing


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        copy.copy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: pickle.loads(pickle.dumps(m, 0)),
        lambda m: torch.load(saved(m), weights_only=False),
    ],
    ids=["deepcopy", "copy", "pickle", "pickle 0", "torch.save"],
)
def test_copies(copied):
    model = nn.Sequential(doubled(nn.Linear(3, 4)), nn.ReLU())
    swap_class(model, Shifted)
    x = torch.rand(2, 3)
    twin = copied(model)
    assert type(twin) is type(model)
    assert type(twin[0]) is type(model[0])
    assert torch.equal(twin(x), model(x))
    assert type(restore(twin)) is nn.Sequential


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


def test_two_mixins_come_off_one_by_one():
    layer, x = nn.Linear(3, 4), torch.rand(2, 3)
    before = layer(x)
    swap_class(doubled(layer), Shifted)
    assert torch.equal(layer(x), 2 * before + 1)
    restore(layer, Doubled)
    assert torch.equal(layer(x), before + 1)
    assert isinstance(layer, Shifted)
    assert not isinstance(layer, Doubled)
    assert type(restore(layer)) is nn.Linear


def test_containers_and_replicas():
    model = swap_class(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.ReLU()), Shifted)
    assert type(model[:2]) is nn.Sequential
    replica = doubled(nn.Linear(2, 2))._replicate_for_data_parallel()
    assert isinstance(replica, Doubled)
    assert replica.factor == 2


def test_hooks_optimizers_and_ema_follow():
    layer, x = nn.Linear(3, 1), torch.rand(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    doubled(layer)
    average = torch.optim.swa_utils.AveragedModel(layer)
    before = layer.weight.detach().clone()
    layer(x).sum().backward()
    optimizer.step()
    average.update_parameters(layer)
    assert calls == [1]
    assert not torch.equal(before, layer.weight)


def test_compiles_whole():
    layer, x = nn.Linear(3, 4), torch.rand(2, 3)
    expected = swap_class(layer, Shifted)(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    with pytest.raises(TypeError, match="_orig_mod"):
        swap_class(compiled, Doubled)
    again = torch.compile(restore(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(again(x), expected - 1)


def test_what_cannot_be_swapped():
    with pytest.raises(TypeError, match="subclass of ModuleMixin"):
        swap_class(nn.Linear(2, 2), nn.Linear)
    with pytest.raises(TypeError, match="already"):
        doubled(doubled(nn.Linear(2, 2)))
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.ReLU())
    with pytest.raises(TypeError, match="TorchScript"):
        swap_class(scripted, Doubled)


SHARDED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from accel.precision.modules import ModuleMixin, restore, swap_class
class Doubled(ModuleMixin):
    def forward(self, x):
        return super().forward(x) * 2
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
for first in (True, False):
    layer, x = nn.Linear(3, 4), torch.rand(2, 3)
    before = layer(x)
    if first:
        swap_class(layer, Doubled)
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    if not first:
        swap_class(layer, Doubled)
    assert isinstance(layer, FSDPModule) and isinstance(layer, nn.Linear)
    out = layer(x)
    assert torch.equal(out, 2 * before)
    out.sum().backward()
    assert layer.weight.grad is not None
    restore(layer)
    assert isinstance(layer, FSDPModule) and not isinstance(layer, Doubled)
    assert torch.equal(layer(x), before)
dist.destroy_process_group()
"""


def test_fully_shard_before_and_after(tmp_path):
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


# --- regions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [W, B, H], ids=str)
def test_a_layer_takes_computes_and_returns_its_dtype(device, dtype):
    here = device.torch_device
    layers = {
        nn.Linear(4, 4): dtype,
        nn.Embedding(5, 4): dtype,
        nn.LayerNorm(4): dtype,
        nn.Conv1d(2, 2, 1): dtype,
    }
    for layer, expected in layers.items():
        apply_plan(layer.to(here), plan(dtype))
        seen = []
        ids = isinstance(layer, nn.Embedding)
        for operands in (W, B, H):
            x = torch.ones(2, 4, device=here, dtype=torch.int64 if ids else operands)
            out = layer(x)
            seen.append(out.dtype)
        assert set(seen) == {expected}, layer
        out.sum().backward()
        assert all(p.dtype == p.grad.dtype == W for p in layer.parameters())


def test_float32_leaves_the_region_around_it(device):
    here = device.torch_device
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).to(here)
    apply_plan(model, plan(B))
    apply_plan(model[1], plan(W))
    outs = []
    for layer in model:
        layer.register_forward_hook(lambda m, args, out: outs.append((args[0].dtype, out.dtype)))
    model(torch.rand(2, 4, device=here))
    assert outs == [(W, B), (B, W), (W, B)]
    assert not torch.is_autocast_enabled(here.type)


def test_a_container_keeps_the_dtypes_of_masks_and_losses(device):
    here = device.torch_device

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, mask):
            self.seen = mask.dtype
            return {"loss": self.layer(x).softmax(-1).sum() + mask.sum().clamp(min=0)}

    model = apply_plan(Model().to(here), plan(H))
    lowest = torch.full((2,), torch.finfo(W).min, device=here)
    assert model(torch.rand(2, 4, device=here), mask=lowest)["loss"].dtype == W
    assert model.seen == W


def test_plans_take_one_anothers_place():
    layer, x = nn.Linear(4, 4), torch.rand(2, 4)
    for dtype in (B, H, W):
        assert apply_plan(layer, plan(dtype))(x).dtype == dtype
    twin = pickle.loads(pickle.dumps(apply_plan(layer, plan(B))))
    assert twin(x).dtype == B
    assert type(restore(twin, ModuleRegion)) is nn.Linear
    assert layer(x).dtype == B
    with pytest.raises(ValueError, match=r"head computes in .* not in torch\.float64"):
        apply_plan(layer, plan(torch.float64, "head"))


def test_regions_compile_whole():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    for layer, dtype in zip(model, (W, B, W, B), strict=True):
        apply_plan(layer, plan(dtype))
    ids = torch.tensor([1, 2, 3])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model(ids))
    model[3].region_dtype = W
    assert compiled(ids).dtype == model(ids).dtype == W


# --- the three-type map ------------------------------------------------------------------------

MAP = {nn.Linear: H, nn.Conv1d: B, nn.Embedding: W}


class Small(nn.Module):
    """Embedding, convolution, linear."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(torch.tanh(self.conv(x.mT)).mT)


def train(where, regions=True, steps=30):
    torch.manual_seed(3)
    model = Small().to(where)
    seen = {}
    for name, module in model.named_children():
        if regions:
            apply_plan(module, plan(MAP[type(module)], name))
        module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out.dtype}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = (torch.arange(48) * 5 % 11).reshape(4, 12).to(where)
    losses = []
    for _ in range(steps):
        logits = model(ids[:, :-1])
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.dtype == p.grad.dtype == W for p in model.parameters())
    return seen, torch.tensor(losses)


def test_the_three_type_map_trains_alike_everywhere(device):
    seen, losses = train(device.torch_device)
    assert seen == {"embed": W, "conv": B, "head": H}
    on_cpu, expected = train(torch.device("cpu"))
    assert on_cpu == seen
    plain, reference = train(torch.device("cpu"), regions=False)
    assert set(plain.values()) == {W}
    assert losses[-1] < 0.3 * losses[0]
    # As near to float32 as the CPU is, twice at most, and a band of one bfloat16 rounding.
    budget = 2 * (expected - reference).abs().max() + torch.finfo(B).eps * reference.abs().max()
    assert (losses - reference).abs().max() <= budget
    assert not torch.equal(expected, reference)

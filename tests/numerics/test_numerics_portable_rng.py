"""Portable randomness: by key and position only, in any layout, order and recomputation."""

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from accel.numerics.portable_rng import PortableDropout, PortableRng
from accel_kernels import philox


@pytest.fixture
def rng():
    return PortableRng(1234)


DRAWS = {
    "uniform": lambda rng, *a, **k: rng.uniform(*a, **k),
    "normal": lambda rng, *a, **k: rng.normal(*a, mean=2.0, std=3.0, **k),
    "integers": lambda rng, name, shape, **k: rng.integers(name, 77, shape, **k),
    "dropout": lambda rng, name, shape, **k: rng.dropout(torch.ones(shape), 0.3, name, **k),
}


@pytest.fixture(params=DRAWS)
def draw(request):
    return DRAWS[request.param]


# --- the key -----------------------------------------------------------------------------------


def test_the_key_is_as_documented(rng) -> None:
    text = b"uniform\0layers.0 \xc3\xa4\0" + (7).to_bytes(8, "little")
    stream = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    expected = philox.uniform(philox.words_from(0, 12, 1234, stream)).view(3, 4)
    assert torch.equal(rng.uniform("layers.0 ä", (3, 4), step=7), expected)


def test_seed_step_name_and_kind_count(draw) -> None:
    x = draw(PortableRng(1), "a", (50,), step=0)
    assert torch.equal(x, draw(PortableRng(1), "a", (50,), step=0))
    for seed, name, step in ((2, "a", 0), (1, "b", 0), (1, "a", 1), (1 << 63 | 1, "a", 0)):
        assert not torch.equal(x, draw(PortableRng(seed), name, (50,), step=step))


def test_kinds_of_draws_are_independent(rng) -> None:
    u = rng.uniform("a", (20000,), step=0, dtype=torch.float64)
    z = rng.normal("a", (20000,), step=0, dtype=torch.float64)
    kept = rng.dropout(torch.ones(20000), 0.5, "a", step=0).double()
    for one, other in ((u, z), (u, kept), (z, kept)):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.035


def test_steps(rng) -> None:
    with pytest.raises(ValueError, match=r"no step to draw 'a' for.*at_step"):
        rng.uniform("a", (2,))
    with rng.at_step(3):
        assert torch.equal(rng.uniform("a", (2,)), rng.uniform("a", (2,), step=3))
        with rng.at_step(4):
            assert torch.equal(rng.uniform("a", (2,)), rng.uniform("a", (2,), step=4))
        assert torch.equal(rng.uniform("a", (2,)), rng.uniform("a", (2,), step=3))
    with pytest.raises(RuntimeError, match="inside"), rng.at_step(1):
        raise RuntimeError("inside")
    with pytest.raises(ValueError, match="no step"):
        rng.uniform("a", (2,))
    with pytest.raises(ValueError, match="counted from 0"), rng.at_step(-1):
        pass
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64 bits"):
            PortableRng(seed)


# --- layouts -----------------------------------------------------------------------------------

SHAPE = (6, 5, 70)
PARTS = {
    "rows": ((2, 0, 0), (3, 5, 70)),
    "columns": ((0, 0, 13), (6, 5, 20)),
    "middle": ((0, 2, 0), (6, 2, 70)),
    "block": ((1, 1, 3), (4, 3, 64)),
    "one": ((5, 4, 69), (1, 1, 1)),
    "none": ((3, 0, 0), (0, 5, 70)),
    "all": ((0, 0, 0), SHAPE),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_that_of_the_whole(part, draw, rng, monkeypatch) -> None:
    offset, shape = PARTS[part]
    cut = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
    expected = draw(rng, "a", SHAPE, step=0)[cut]
    for chunk in (1 << 16, 100, 7):
        monkeypatch.setattr("accel.numerics.portable_rng._CPU_CHUNK", chunk)
        assert torch.equal(draw(rng, "a", shape, step=0, offset=offset, whole=SHAPE), expected)


def test_shapes_do_not_matter_but_positions(draw, rng) -> None:
    flat = draw(rng, "a", (210,), step=0)
    assert torch.equal(draw(rng, "a", (3, 70), step=0), flat.view(3, 70))
    assert torch.equal(draw(rng, "a", (), step=0), flat[0])
    far = draw(rng, "a", (3,), step=0, offset=(1 << 40,), whole=(1 << 41,))
    assert torch.equal(draw(rng, "a", (1,), step=0, offset=((1 << 40) + 1,), whole=(1 << 42,)),
                       far[1:2])  # fmt: skip


def test_a_part_outside_is_refused(draw, rng) -> None:
    for offset, whole in (((3,), (5,)), ((-1,), (9,)), ((0, 0), (5, 5)), ((0,), (2,))):
        with pytest.raises(ValueError, match="not inside a whole"):
            draw(rng, "a", (3,), step=0, offset=offset, whole=whole)


# --- what is drawn -----------------------------------------------------------------------------


def test_normal_is_rounded_from_float64(rng) -> None:
    exact = rng.normal("a", (3000,), std=0.02, step=0, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(rng.normal("a", (3000,), std=0.02, step=0, dtype=dtype), exact.to(dtype))
    assert abs(float(exact.mean())) < 0.02 * 4 / 3000**0.5
    assert float(exact.std()) == pytest.approx(0.02, rel=0.07)
    with pytest.raises(TypeError, match="floating-point"):
        rng.normal("a", (2,), step=0, dtype=torch.int64)


def test_dropout(rng) -> None:
    x = torch.randn(100, 200, requires_grad=True)
    y = rng.dropout(x, 0.25, "a", step=0)
    kept = y != 0
    assert abs(float(kept.double().mean()) - 0.75) < 0.016
    assert torch.equal(y, torch.where(kept, x * (1 / 0.75), 0.0))
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(kept, torch.tensor(1 / 0.75), 0.0))
    assert rng.dropout(x, 0.25, "a", step=0, training=False) is x
    assert rng.dropout(x, 0.0, "a", step=0) is x
    assert not rng.dropout(x, 1.0, "a", step=0).any()
    assert rng.dropout(x.bfloat16(), 0.25, "a", step=0).dtype == torch.bfloat16
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            rng.dropout(x, p, "a", step=0)
        with pytest.raises(ValueError, match="from 0 to 1"):
            PortableDropout(p, rng, "a")


def test_recomputation_draws_the_same(rng) -> None:
    layer = nn.Sequential(nn.Linear(20, 20), PortableDropout(0.5, rng, "drop"), nn.Linear(20, 20))
    gradients = []
    for recompute in (False, True):
        layer.zero_grad()
        x = torch.linspace(-1, 1, 60).view(3, 20).requires_grad_()
        with rng.at_step(5):
            y = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False) \
                if recompute else layer(x)  # fmt: skip
            y.square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_calls_of_one_module_in_one_step(rng) -> None:
    drop = PortableDropout(0.5, rng, "shared")
    with rng.at_step(0):
        x = torch.ones(300)
        assert torch.equal(drop(x), drop(x))
        assert not torch.equal(drop(x), drop(x, 1))
        assert torch.equal(drop(x[:100], offset=(100,), whole=(300,)), drop(x)[100:200])
        drop.eval()
        assert drop(x) is x


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_recorder_sees_the_mask_and_not_how_it_is_made(rng) -> None:
    x = torch.randn(3, 4)
    with Seen() as seen:
        rng.dropout(x, 0.5, "a", step=0)
        rng.uniform("a", (2, 2), step=0, whole=(4, 4))
    assert set(seen.names) <= {"mul", "where", "scalar_tensor"}


# Dynamo's own, where it leaves the graph for the draw.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_model_drops_the_same(training, rng) -> None:
    model = nn.Sequential(nn.Linear(6, 6), PortableDropout(0.5, rng, "d")).train(training)
    x = torch.randn(5, 6)
    torch._dynamo.reset()
    traced = torch.compile(model, backend="eager")
    for step in (0, 1):
        with rng.at_step(step):
            assert torch.equal(traced(x), model(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)
        self.again = self.drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.drop(F.relu(self.first(x))))


def test_dropout_of_a_model_is_replaced(rng) -> None:
    model = nn.Sequential(Block(), nn.Dropout(0.2).eval())
    assert rng.replace_dropout(model) == ["0.drop", "0.again", "1"]
    assert model[0].drop is model[0].again
    assert isinstance(model[1], PortableDropout)
    assert (model[1].p, model[1].name, model[1].training) == (0.2, "1", False)
    twin = copy.deepcopy(model)
    assert twin[0].drop.rng is rng, "a copy follows the same step"
    with rng.at_step(1):
        x = torch.randn(4, 8)
        assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.1)), r"1 \(Dropout2d\)"),
        (nn.Sequential(nn.MultiheadAttention(8, 2, dropout=0.1)), r"0 \(MultiheadAttention\)"),
        (nn.Sequential(nn.GRU(8, 8, 2, dropout=0.1)), r"0 \(GRU\)"),
        (nn.Dropout(0.1), "the model itself"),
    ],
)
def test_dropout_that_cannot_be_replaced(module, message, rng) -> None:
    before = [type(m) for m in module.modules()]
    with pytest.raises(ValueError, match=message):
        rng.replace_dropout(module)
    assert [type(m) for m in module.modules()] == before


# --- initial weights ---------------------------------------------------------------------------


def models() -> dict[str, nn.Module]:
    return {
        "mlp": nn.Sequential(nn.Linear(12, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)),
        "cnn": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 2, 2)),
        "transformer": nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
        "lstm": nn.Sequential(nn.Embedding(11, 6, padding_idx=3), nn.LSTM(6, 5)),
    }


@pytest.mark.parametrize("name", models())
def test_initial_weights(name, rng) -> None:
    model, other = models()[name], models()[name].bfloat16()
    rng.initialise(model)
    PortableRng(1234).initialise(other)
    # As its own methods would, by numbers of the same distribution.
    torch.manual_seed(0)
    own = models()[name]
    for (path, a), b, c in zip(
        model.named_parameters(), other.parameters(), own.parameters(), strict=True
    ):
        assert a.requires_grad, path
        assert torch.equal(a.bfloat16(), b), path
        a, b, c = a.detach(), b.detach(), c.detach()
        if c.numel() < 40 or not c.std():
            assert torch.equal(a, c) or a.std() > 0, path
        else:
            assert float(a.std()) == pytest.approx(float(c.std()), rel=0.35), path
            assert not torch.equal(a, c), path
    third = models()[name]
    PortableRng(5).initialise(third)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), third.parameters(), strict=True)
    )


def test_initial_weights_are_those_of_the_key(rng) -> None:
    model = nn.Sequential(nn.Linear(16, 7))
    rng.initialise(model)
    u = rng.uniform("initial 0.weight", (7, 16), step=0, dtype=torch.float64)
    torch.testing.assert_close(model[0].weight.data, ((u * 2 - 1) / 4).float(), rtol=0, atol=1e-7)


def test_shards_hold_the_weights_of_the_whole(rng) -> None:
    whole = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 12))
    rng.initialise(whole)
    part = nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 12))
    rng.initialise(
        part,
        shards={
            "0.weight": ((8, 12), (4, 0)), "0.bias": ((8,), (4,)), "1.weight": ((12, 8), (0, 4)),
        },
    )  # fmt: skip
    assert torch.equal(part[0].weight, whole[0].weight[4:])
    assert torch.equal(part[0].bias, whole[0].bias[4:])
    assert torch.equal(part[1].weight, whole[1].weight[:, 4:])
    with pytest.raises(ValueError, match=r"no parameter: 2\.weight"):
        rng.initialise(part, shards={"2.weight": ((8, 12), (4, 0))})
    with pytest.raises(ValueError, match="not inside a whole"):
        rng.initialise(part, shards={"0.weight": ((8, 12), (5, 0))})


def test_distributed_tensors_hold_their_part(rng) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = nn.Sequential(nn.Linear(12, 8))
    rng.initialise(whole)
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (4,))

        def cut(name: str, module: nn.Module, mesh: dist.DeviceMesh) -> None:
            for key, value in list(module._parameters.items()):
                local = distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
                module._parameters[key] = nn.Parameter(local)

        model = distribute_module(nn.Sequential(nn.Linear(12, 8)), mesh, cut)
        rng.initialise(model)
        assert torch.equal(model[0].weight.to_local(), whole[0].weight[4:6])
        assert torch.equal(model[0].bias.to_local(), whole[0].bias[4:6])
    finally:
        dist.destroy_process_group()


def test_a_function_initialises(rng) -> None:
    """As transformers' `_init_weights`, which writes through `.data`."""

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=0.02)
            module.bias.data.zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    model = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30))
    rng.initialise(model, function=init)
    expected = rng.normal("initial 0.weight", (30, 40), std=0.02, step=0)
    assert torch.equal(model[0].weight, expected)
    assert not model[0].bias.any()


def test_tied_weights_and_custom_draws(rng) -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(5, 5))

        def reset_parameters(self) -> None:
            nn.init.trunc_normal_(self.a[:2], std=0.1)
            nn.init.trunc_normal_(self.a[2:], std=0.1)
            nn.init.orthogonal_(self.b)

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), Custom())
    model[1].weight = model[0].weight
    rng.initialise(model)
    assert model[1].weight is model[0].weight
    assert not torch.equal(model[2].a[:2], model[2].a[2:])
    assert float(model[2].a.detach().abs().max()) < 0.5
    torch.testing.assert_close(model[2].b @ model[2].b.T, torch.eye(5), rtol=0, atol=1e-5)
    first = [p.clone() for p in model.parameters()]
    rng.initialise(model)
    assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))


class Owner(nn.Module):
    """Has a parameter that nothing initialises, or draws in a way that is not portable."""

    def __init__(self, reset: object = None) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        if reset:
            self.reset_parameters = lambda: reset(self.token)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), Owner()), "no module initialises 1.token: .*function="),
        (Owner(lambda token: None), "no module initialises token"),
        (nn.Sequential(Owner(lambda token: token.exponential_())), "'0' .*exponential_"),
        (Owner(lambda token: token.copy_(torch.randn(3))), "randn"),
        (nn.Linear(2, 2, device="meta"), "weight has no memory yet: call `to_empty"),
        (nn.LazyLinear(2), "has no memory yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_what_cannot_be_initialised(model, message, rng) -> None:
    with pytest.raises(ValueError, match=message):
        rng.initialise(model)


def test_a_failing_module_leaves_its_parameters_in_place(rng) -> None:
    model = Owner(lambda token: token.exponential_())
    token = model.token
    with pytest.raises(ValueError, match="exponential_"):
        rng.initialise(model)
    assert model.token is token


def test_torchs_own_generator_is_left_alone(draw, rng) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        rng.initialise(model)
        found.append([draw(rng, "a", (10,), step=0), *(p.clone() for p in model.parameters())])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


ON_ASCEND = """
import accel.simulate
accel.simulate.activate()
import torch
from accel.numerics.portable_rng import PortableRng
from accel_kernels.sketch import sketch

rng, x = PortableRng(3), torch.randn(50, 70)
for draw in (rng.uniform, rng.normal):
    assert torch.equal(draw("a", (50, 70), step=1, device="npu").cpu(), draw("a", (50, 70), step=1))
dropped = rng.dropout(x.to("npu"), 0.3, "d", step=0)
assert dropped.device.type == "npu"
assert torch.equal(dropped.cpu(), rng.dropout(x, 0.3, "d", step=0))
model, other = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5).to("npu")
rng.initialise(model)
rng.initialise(other)
assert torch.equal(model.weight, other.weight.cpu())
assert sketch(x.to("npu").t()) == sketch(x.t())
print("agree")
"""


def test_a_simulated_ascend_draws_the_same() -> None:
    root = Path(__file__).parents[2]
    inherited = ("ACCEL_SIMULATE", "ACCEL_SIMULATE_PARTS", "ASCEND_HOME_PATH", "TASK_QUEUE_ENABLE")
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    env["PYTHONPATH"] = f"{root}{os.pathsep}{root / 'kernels'}"
    command = [sys.executable, "-c", ON_ASCEND]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.stdout.strip().endswith("agree"), result.stderr

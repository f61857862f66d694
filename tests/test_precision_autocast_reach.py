"""Where the table holds: behind torch's Python functions, modules, compiler and checkpoints."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError, checkpoint

from accel.precision.autocast import checkpoint_contexts, kernels, portable_autocast
from accel.precision.modules import apply_plan
from accel.precision.operand import ModulePlan

B, W = torch.bfloat16, torch.float32
pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|inductor|lowering).*")


def attention(x):
    return nn.MultiheadAttention(8, 2, batch_first=True, device=x.device)(x, x, x)


def recurrent(kind):
    return lambda x: kind(8, 8, device=x.device)(x)[0]


def packed(x):
    sequences = nn.utils.rnn.pack_padded_sequence(x, [4, 2], batch_first=True)
    return nn.GRU(8, 8, device=x.device)(sequences)[0].data


def labels(x):
    return torch.tensor([1, 2], device=x.device)


# Each gets [2, 4, 8] of the given dtype.
CALLS = {
    "x ** 2": (lambda x: x**2, W),
    "2 ** x": (lambda x: 2**x, W),
    "x @ y": (lambda x: x @ x.mT, B),
    "1 / x": (lambda x: torch.reciprocal(x), W),
    "Tensor.softmax": (lambda x: x.softmax(-1), W),
    "Tensor.norm": (lambda x: x.norm(), W),
    "Tensor.cumsum": (lambda x: x.cumsum(-1), W),
    "Tensor.mean": (lambda x: x.to(B).mean(), B),
    "torch.norm": (lambda x: torch.norm(x, dim=-1), W),
    "torch.einsum": (lambda x: torch.einsum("btd,bsd->bts", x, x), B),
    "torch.special.softmax": (lambda x: torch.special.softmax(x, -1), W),
    "torch.special.logsumexp": (lambda x: torch.special.logsumexp(x, -1), W),
    "torch.linalg.norm": (lambda x: torch.linalg.norm(x), W),
    "torch.linalg.matrix_power": (lambda x: torch.linalg.matrix_power(x[:, :, :4], 2), B),
    "F.softmax": (lambda x: F.softmax(x, -1), W),
    "F.log_softmax": (lambda x: F.log_softmax(x, -1), W),
    "F.softmin": (lambda x: F.softmin(x, -1), W),
    "F.gumbel_softmax": (lambda x: F.gumbel_softmax(x), W),
    "F.normalize": (lambda x: F.normalize(x.to(B)), W),
    "F.pairwise_distance": (lambda x: F.pairwise_distance(x, x + 1), W),
    "F.cosine_similarity": (lambda x: F.cosine_similarity(x, x), W),
    "F.cross_entropy": (lambda x: F.cross_entropy(x[:, 0], labels(x)), W),
    "F.nll_loss": (lambda x: F.nll_loss(x[:, 0], labels(x)), W),
    "F.interpolate": (lambda x: F.interpolate(x, scale_factor=2), W),
    "F.interpolate linear": (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), W),
    "F.scaled_dot_product_attention": (lambda x: F.scaled_dot_product_attention(x, x, x), B),
    "F.gelu": (lambda x: F.gelu(x.to(B)), B),
    "nn.LayerNorm": (lambda x: nn.LayerNorm(8, device=x.device)(x), W),
    "nn.RMSNorm": (lambda x: nn.RMSNorm(8, device=x.device)(x), W),
    "nn.GroupNorm": (lambda x: nn.GroupNorm(2, 4, device=x.device)(x), W),
    "nn.Conv1d same": (lambda x: nn.Conv1d(4, 2, 3, padding="same", device=x.device)(x), B),
    "nn.Bilinear": (lambda x: nn.Bilinear(8, 8, 2, device=x.device)(x, x), W),
    "nn.LSTM": (recurrent(nn.LSTM), B),
    "nn.GRU": (recurrent(nn.GRU), B),
    "nn.GRU packed": (packed, B),
    "nn.RNN": (recurrent(nn.RNN), B),
    "nn.MultiheadAttention": (lambda x: attention(x)[0], B),
    "its weights": (lambda x: attention(x)[1], W),
    "torch.ops": (lambda x: torch.ops.aten.exp(x), W),
    "torch.ops overload": (lambda x: torch.ops.aten.exp.default(x), W),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_every_kind(device, name):
    call, expected = CALLS[name]
    for dtype in (B, W):
        x = torch.rand(2, 4, 8, device=device.torch_device, dtype=dtype, requires_grad=True)
        with portable_autocast(device.torch_type):
            result = call(x)
        assert result.dtype == expected, dtype
        result.sum().backward()
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()


class Listed(TorchFunctionMode):
    """Names and result dtypes of the operators that a model calls."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        found = [t.dtype for t in tree_leaves(result) if torch.is_tensor(t)]
        if found and name not in ("__get__", "transpose", "view", "unsqueeze", "detach"):
            self.seen.append((name, str(found[0]).removeprefix("torch.")))
        return result


class Block(nn.Module):
    """Pre-norm Transformer block, attention written out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.RMSNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        query, key, value = self.qkv(self.first(x)).chunk(3, -1)
        weights = torch.softmax(torch.matmul(query, key.mT) * 0.25, -1)
        x = torch.add(x, self.out(torch.matmul(weights, value)))
        return torch.add(x, self.down(F.gelu(self.up(self.second(x)))))


IN_A_BLOCK = [
    ("layer_norm", "float32"), ("linear", "bfloat16"), ("chunk", "bfloat16"),
    ("matmul", "bfloat16"), ("mul", "bfloat16"), ("softmax", "float32"), ("matmul", "bfloat16"),
    ("linear", "bfloat16"), ("add", "float32"), ("rms_norm", "float32"), ("linear", "bfloat16"),
    ("gelu", "bfloat16"), ("linear", "bfloat16"), ("add", "float32"),
]  # fmt: skip


def test_a_transformer_block_has_the_same_dtypes_everywhere(device):
    torch.manual_seed(0)
    block = Block()
    x = torch.rand(2, 5, 16)
    with portable_autocast("cpu"):
        expected = block(x)
    block.to(device.torch_device)
    moved = x.to(device.torch_device)
    with portable_autocast(device.torch_type), Listed() as listed:
        found = block(moved)
    assert [row for row in listed.seen if row[0] != "mT"] == IN_A_BLOCK
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in block.parameters())


def test_fast_paths_of_modules_keep_to_the_table(device):
    """nn.TransformerEncoderLayer has one for evaluation; autocast shuts it."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).to(device.torch_device).eval()
    x = torch.rand(2, 4, 8, device=device.torch_device)
    norm_inputs = []
    layer.norm1.register_forward_hook(lambda module, args, out: norm_inputs.append(out.dtype))
    with torch.no_grad(), portable_autocast(device.torch_type):
        assert layer(x).dtype == W
    assert norm_inputs == [W]


def test_scripted_and_traced_code(device):
    x = torch.rand(2, 3, device=device.torch_device, dtype=B)
    traced = torch.jit.trace(lambda v: torch.softmax(v, -1), x, check_trace=False)
    scripted = torch.jit.script(softmax)
    for function in (traced, scripted):
        assert function(x).dtype == B
        with portable_autocast(device.torch_type):
            assert function(x).dtype == W


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def test_in_place_and_out_are_left_alone(device):
    x = torch.rand(3, device=device.torch_device, dtype=B)
    with portable_autocast(device.torch_type):
        assert x.clone().exp_().dtype == B
        assert torch.exp(x, out=torch.empty_like(x)).dtype == B
        assert torch.cumsum(x, 0, out=torch.empty_like(x)).dtype == B


# --- torch.compile -----------------------------------------------------------------------------


def chain(x):
    y = x @ x.mT
    return y, F.layer_norm(y, y.shape[-1:]), y.softmax(-1), F.avg_pool3d(y[None, None], 1), y.sum()


def found(results):
    return [r.dtype for r in results]


EXPECTED = [B, W, W, W, W]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_may_enter_it(backend):
    def function(x):
        with portable_autocast("cpu"):
            return chain(x)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    x, twin = (torch.ones(4, 4).cumsum(0).div(9).requires_grad_() for _ in range(2))
    results, expected = compiled(x), function(twin)
    assert found(results) == found(expected) == EXPECTED
    sum(r.float().sum() for r in results).backward()
    sum(r.float().sum() for r in expected).backward()
    torch.testing.assert_close(x.grad, twin.grad)


def test_compiled_code_follows_the_region_around_it():
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    x = torch.rand(4, 4)
    native = [B, B, B, W, B]
    for _ in range(2):
        assert found(compiled(x)) == [W] * 5
        with torch.autocast("cpu", dtype=B):
            assert found(compiled(x)) == native
        with portable_autocast("cpu", B):
            assert found(compiled(x)) == EXPECTED
        with portable_autocast("cpu", torch.float16):
            assert found(compiled(x)) == [torch.float16, W, W, W, W]


def test_exported_programs_keep_the_casts():
    class Model(nn.Module):
        def forward(self, x):
            with portable_autocast("cpu"):
                return (x @ x).softmax(-1)

    program = torch.export.export(Model(), (torch.rand(4, 4),)).run_decompositions()
    assert program.module()(torch.rand(4, 4)).dtype == W
    casts = [n for n in program.graph.nodes if "_to_copy" in str(n.target) or "type" in n.name]
    assert casts or any("wrap_with_autocast" in str(n.target) for n in program.graph.nodes)


# --- activation checkpointing ------------------------------------------------------------------


def segment(x):
    return F.layer_norm(x @ x.mT, (4,)).softmax(-1)


def trained(device, run):
    x = (torch.arange(16.0).reshape(4, 4) / 16).to(device.torch_device).requires_grad_()
    with portable_autocast(device.torch_type):
        loss = run(x).square().sum()
    loss.backward()
    return x.grad


def test_checkpointing_recomputes_in_the_region(device):
    again = trained(
        device,
        lambda x: checkpoint(segment, x, use_reentrant=False, context_fn=checkpoint_contexts),
    )
    assert torch.equal(again, trained(device, segment))
    # Nothing is entered where nothing was.
    x = torch.rand(4, 4, device=device.torch_device, requires_grad=True)
    with torch.autocast(device.torch_type, dtype=B):
        native = checkpoint(segment, x, use_reentrant=False, context_fn=checkpoint_contexts)
        assert native.dtype == segment(x).dtype
    native.sum().backward()


def test_a_region_inside_the_checkpoint_needs_nothing(device):
    layer = nn.Linear(4, 4, bias=False).to(device.torch_device)
    apply_plan(layer, ModulePlan("layer", "Linear", B, {}, {}))

    def run(x):
        return F.layer_norm(layer(x), (4,))

    def gradient(function):
        x = torch.ones(2, 4, device=device.torch_device).cumsum(1).requires_grad_()
        function(x).square().sum().backward()
        return x.grad

    for reentrant in (True, False):
        again = gradient(lambda x, r=reentrant: checkpoint(run, x, use_reentrant=r))
        assert torch.equal(again, gradient(run))


def test_compiled_checkpointing_needs_nothing():
    torch._dynamo.reset()

    def run(x):
        with portable_autocast("cpu"):
            return checkpoint(segment, x, use_reentrant=False)

    def gradient(function):
        x = (torch.arange(16.0).reshape(4, 4) / 16).requires_grad_()
        result = function(x)
        assert result.dtype == W
        result.square().sum().backward()
        return x.grad

    compiled = gradient(torch.compile(run, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, trained_on_cpu(), rtol=1e-3, atol=1e-4)


def trained_on_cpu():
    x = (torch.arange(16.0).reshape(4, 4) / 16).requires_grad_()
    with portable_autocast("cpu"):
        result = segment(x)
    result.square().sum().backward()
    return x.grad


def test_checkpointing_without_it_is_told(device, caplog):
    if device.torch_type != "cpu":
        pytest.skip("that the recomputation differs needs a device whose own list does")
    with pytest.raises(CheckpointError):
        trained(device, lambda x: checkpoint(segment, x, use_reentrant=False))
    kernels._told.clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "accel"):
        for _ in range(2):
            trained(device, lambda x: checkpoint(segment, x, use_reentrant=True))
    (record,) = caplog.records
    assert "checkpoint_contexts" in record.getMessage()


def test_backward_inside_the_region_is_as_outside(device):
    def gradient(inside):
        x = (torch.arange(16.0).reshape(4, 4) / 16).to(device.torch_device).requires_grad_()
        with portable_autocast(device.torch_type):
            loss = segment(x).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return x.grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=2e-2, atol=1e-3)

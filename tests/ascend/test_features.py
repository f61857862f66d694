"""What training code does besides forward and backward, on the simulated chip."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

NPU = torch.device("npu", 0)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 4))


def batch(seed=1):
    torch.manual_seed(seed)
    return torch.randn(6, 8), torch.randn(6, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, y = batch()
    model = small()
    with torch.autocast("cpu", dtype=dtype):
        hidden = model(x)
        expected = F.mse_loss(hidden.float(), y)
    expected.backward()
    gradients = [p.grad for p in model.parameters()]
    moved = small().to(NPU)
    with torch.autocast("npu", dtype=dtype):
        out = moved(x.to(NPU))
        assert out.dtype == dtype
        loss = F.mse_loss(out.float(), y.to(NPU))
    loss.backward()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-2, atol=1e-3)
    for mine, theirs in zip(moved.parameters(), gradients, strict=True):
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad.cpu(), theirs, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("scaler_class", ["torch.amp", "torch.npu.amp"])
def test_grad_scaler_takes_a_step_and_skips_one(scaler_class):
    x, y = batch()
    model = small().to(NPU)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    make = torch.amp.GradScaler if scaler_class == "torch.amp" else torch.npu.amp.GradScaler
    scaler = make("npu", init_scale=1024.0) if scaler_class == "torch.amp" else make(1024.0)

    def step(factor):
        optimizer.zero_grad()
        with torch.autocast("npu", dtype=torch.float16):
            loss = F.mse_loss(model(x.to(NPU)).float(), y.to(NPU)) * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    before = copy.deepcopy(model.state_dict())
    step(1.0)
    after = copy.deepcopy(model.state_dict())
    assert any((before[k] != after[k]).any() for k in before)
    assert scaler.get_scale() == 1024.0
    step(float("inf"))
    assert all((after[k] == v).all() for k, v in model.state_dict().items())
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_replays_dropout(reentrant):
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    block = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8)).to(NPU)
    x = torch.randn(6, 8).to(NPU).requires_grad_()
    torch.npu.manual_seed(7)
    block(x).sum().backward()
    expected = x.grad.clone()
    x.grad = None
    torch.npu.manual_seed(7)
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    assert (x.grad == expected).all()
    assert (expected == 0).any(), "dropout must have dropped something"


def test_deepcopy_and_state_dict():
    model = small().to(NPU)
    twin = copy.deepcopy(model)
    assert next(twin.parameters()).device == NPU
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert (next(twin.parameters()) != 0).any()
    twin.load_state_dict(small(3).state_dict())
    assert (next(twin.parameters()).cpu() == next(small(3).parameters())).all()


@pytest.mark.parametrize("target", ["cpu", "npu", "npu:1", None])
def test_save_and_load(target):
    model = small().to(NPU)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, map_location=target, weights_only=True)
    expected = torch.device(target or "npu:0")
    for name, value in state.items():
        assert value.device.type == expected.type
        assert value.device.index == (
            expected.index if expected.type == "cpu" else expected.index or 0
        )
        assert (value.cpu() == model.state_dict()[name].cpu()).all()


def test_cpu_checkpoint_onto_the_chip():
    file = io.BytesIO()
    torch.save(small(5).state_dict(), file)
    file.seek(0)
    model = small().to(NPU)
    model.load_state_dict(torch.load(file, map_location=NPU, weights_only=True))
    assert (next(model.parameters()).cpu() == next(small(5).parameters())).all()


def test_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    state = {k: v.contiguous() for k, v in small().to(NPU).state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    for device in ("cpu", "npu:0"):
        loaded = load_file(tmp_path / "model.safetensors", device=device)
        for name, value in state.items():
            assert str(loaded[name].device) == device
            assert (loaded[name].cpu() == value.cpu()).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_with_pinned_memory(workers):
    from torch.utils.data import DataLoader, TensorDataset

    data = torch.arange(12.0).reshape(6, 2)
    loader = DataLoader(
        TensorDataset(data), 2, pin_memory=True, num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    got = []
    for (x,) in loader:
        assert x.is_pinned()
        got.append(x.to(NPU, non_blocking=True))
    assert (torch.cat(got).cpu() == data).all()


def test_random_state_is_saved_and_restored():
    torch.npu.manual_seed(11)
    state = torch.npu.get_rng_state()
    first = torch.randn(100, device=NPU), torch.nn.functional.dropout(torch.ones(100, device=NPU))
    second = torch.randn(100, device=NPU)
    torch.npu.set_rng_state(state)
    again = torch.randn(100, device=NPU), torch.nn.functional.dropout(torch.ones(100, device=NPU))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != second).any()
    torch.npu.manual_seed(11)
    assert (torch.randn(100, device=NPU) == first[0]).all()
    torch.npu.manual_seed(12)
    assert (torch.randn(100, device=NPU) != first[0]).any()


def test_generators_of_their_own():
    one, two = (torch.Generator(device="npu").manual_seed(3) for _ in range(2))
    cpu_before = torch.get_rng_state()
    a = torch.rand(50, device=NPU, generator=one)
    b = torch.rand(50, device=NPU, generator=two)
    assert (a == b).all()
    assert (torch.rand(50, device=NPU, generator=one) != a).any()
    assert (torch.get_rng_state() == cpu_before).all(), "the CPU's stream is left alone"
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(5, device=NPU, generator=torch.Generator())


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    [
        (lambda: torch.randn(20_000, device=NPU), 0.0, 1.0),
        (lambda: torch.rand(20_000, device=NPU), 0.5, 12**-0.5),
        (lambda: torch.empty(20_000, device=NPU).exponential_(2.0), 0.5, 0.5),
        (lambda: torch.bernoulli(torch.full((20_000,), 0.3, device=NPU)), 0.3, 0.21**0.5),
        (lambda: torch.randint(0, 5, (20_000,), device=NPU).float(), 2.0, 2**0.5),
    ],
)
def test_distributions(draw, mean, deviation):
    torch.npu.manual_seed(5)
    values = draw().cpu()
    assert abs(values.mean() - mean) < 5 * deviation / 20_000**0.5
    assert abs(values.std() - deviation) < 0.05 * deviation


def test_compile_with_aot_eager():
    x, y = batch()
    model = small().to(NPU)
    expected = F.mse_loss(model(x.to(NPU)), y.to(NPU))
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = F.mse_loss(compiled(x.to(NPU)), y.to(NPU))
    loss.backward()
    assert loss == expected
    assert all((p.grad == g).all() for p, g in zip(model.parameters(), gradients, strict=True))


MASKS = {
    "none": dict,
    "causal": lambda: {"is_causal": True},
    "bool": lambda: {"attn_mask": torch.rand(2, 1, 7, 7) > 0.3},
    "float": lambda: {"attn_mask": torch.randn(7, 7)},
    "scale": lambda: {"scale": 0.3},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_sdpa_forward_and_backward(mask, dtype):
    torch.manual_seed(2)
    tensors = [torch.randn(2, 3, 7, 8, dtype=dtype) for _ in range(3)]
    options = MASKS[mask]()
    if "attn_mask" in options and options["attn_mask"].dtype != torch.bool:
        options["attn_mask"] = options["attn_mask"].to(dtype)

    def run(device):
        leaves = [t.to(device).requires_grad_() for t in tensors]
        moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()}
        out = F.scaled_dot_product_attention(*leaves, **moved)
        out.float().square().sum().backward()
        return [out, *(leaf.grad for leaf in leaves)]

    for mine, theirs in zip(run(NPU), run("cpu"), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=0)


SHAPES = {  # query, key, value, mask
    "grouped heads": ((2, 4, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8), (7, 7)),
    "three dimensions": ((3, 7, 8), (3, 7, 8), (3, 7, 8), (3, 7, 7)),
    "two dimensions": ((7, 8), (9, 8), (9, 8), (7, 9)),
    "five dimensions": ((2, 2, 2, 7, 8), (2, 2, 2, 7, 8), (2, 2, 2, 7, 8), (7, 7)),
    "other value size": ((2, 3, 7, 8), (2, 3, 7, 8), (2, 3, 7, 5), (2, 1, 7, 7)),
    "broadcast keys": ((2, 3, 7, 8), (1, 3, 7, 8), (1, 3, 7, 8), (7, 7)),
}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_sdpa_by_the_formula_with_a_boolean_mask(shape, strided):
    torch.manual_seed(4)
    *shapes, mask_shape = SHAPES[shape]
    tensors = [torch.randn(s) for s in shapes]
    if strided:
        tensors = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in tensors]
    mask = torch.rand(mask_shape) > 0.3
    mask[..., 0] = True
    options = {"enable_gqa": True} if shape == "grouped heads" else {}

    def run(device):
        leaves = [t.to(device).requires_grad_() for t in tensors]
        out = F.scaled_dot_product_attention(*leaves, attn_mask=mask.to(device), **options)
        out.square().sum().backward()
        return [out, *(leaf.grad for leaf in leaves)]

    for mine, theirs in zip(run(NPU), run("cpu"), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-5, atol=1e-6)


def test_sdpa_with_dropout_and_a_boolean_mask():
    keys = 16
    query, key = torch.randn(1, 1, 8, 4, device=NPU), torch.randn(1, 1, keys, 4, device=NPU)
    value = torch.eye(keys, device=NPU)[None, None]  # the output is the weights
    allowed = torch.arange(keys, device=NPU) % 2 == 0
    out = F.scaled_dot_product_attention(query, key, value, allowed.expand(8, keys), dropout_p=0.5)
    assert (out[..., ~allowed] == 0).all()
    assert (out[..., allowed] == 0).any()
    assert (out[..., allowed] != 0).any()


def test_sdpa_does_not_fall_back(run_simulated):
    """On a chip attention is a kernel of its own; no warning may say otherwise."""
    result = run_simulated(
        """
        import torch
        x = torch.randn(1, 2, 8, 4, device="npu", requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
        """
    )
    assert result.returncode == 0
    assert "fall back" not in result.stderr


def test_sdpa_takes_no_quadratic_memory():
    shape = (1, 1, 4096, 8)
    tensors = [torch.randn(shape, device=NPU, requires_grad=True) for _ in range(3)]
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()
    F.scaled_dot_product_attention(*tensors, is_causal=True).sum().backward()
    assert torch.npu.max_memory_allocated() - before < 4096 * 4096


def test_accelerate_trains_unmodified():
    from accelerate import Accelerator

    accelerator = Accelerator()
    assert accelerator.device.type == "npu"
    x, y = batch()
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(5):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    reference = small()
    chosen = torch.optim.AdamW(reference.parameters(), 1e-2)
    expected = []
    for _ in range(5):
        for inputs, targets in zip(x.split(3), y.split(3), strict=True):
            chosen.zero_grad()
            loss = F.mse_loss(reference(inputs), targets)
            loss.backward()
            chosen.step()
            expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-6)

"""Ascend's own operators called as programs call them: torch_npu's functions, on the chip.

Their formulas are proven in tests/kernels/test_vendor_*.py. Here: that torch_npu's Python API, its
schemas and its derivatives reach them, in float64 where torch_npu lets float64 through.
"""

import pytest
import torch
import torch_npu

from accel_kernels.vendor.npu import REFERENCES

NPU = torch.device("npu", 0)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def leaves(*shapes, dtype=torch.float64):
    """CPU tensors with gradient, and the same on the chip."""
    torch.manual_seed(sum(map(sum, shapes)))
    here = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    return here, [x.detach().to(NPU).requires_grad_() for x in here]


def check(chip, cpu, *shapes, tolerance=EXACT):
    """`chip` on the chip against the formula `cpu`: result and gradients."""
    here, there = leaves(*shapes)
    expected, found = cpu(*here), chip(*there)
    assert found.device == NPU
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), **tolerance)
    weight = torch.randn_like(expected)
    expected.backward(weight)
    found.backward(weight.to(NPU))
    for mine, theirs in zip(there, here, strict=True):
        torch.testing.assert_close(mine.grad.cpu(), theirs.grad, **tolerance)


def attention(query, key, value, *, scale, allowed=None):
    scores = query @ key.transpose(-1, -2) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1) @ value


def to_layout(x, layout):
    b, n, s, d = x.shape
    return {
        "BNSD": lambda: x,
        "BSND": lambda: x.transpose(1, 2),
        "BSH": lambda: x.transpose(1, 2).reshape(b, s, n * d),
        "SBH": lambda: x.permute(2, 0, 1, 3).reshape(s, b, n * d),
    }[layout]()


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "SBH"])
@pytest.mark.parametrize("masked", [False, True])
def test_fusion_attention_and_its_gradient(layout, masked):
    allowed = torch.rand(7, 7) > 0.3
    allowed.fill_diagonal_(True)

    def chip(query, key, value):
        mask = (~allowed).to(NPU) if masked else None
        return torch_npu.npu_fusion_attention(
            *(to_layout(x, layout).contiguous() for x in (query, key, value)),
            3, layout, scale=0.4, atten_mask=mask,
        )[0]  # fmt: skip

    def cpu(query, key, value):
        out = attention(query, key, value, scale=0.4, allowed=allowed if masked else None)
        return to_layout(out, layout)

    check(chip, cpu, (2, 3, 7, 8), (2, 3, 7, 8), (2, 3, 7, 8))


def test_fusion_attention_scale_is_one_unless_given():
    check(
        lambda q, k, v: torch_npu.npu_fusion_attention(q, k, v, 2, "BNSD")[0],
        lambda q, k, v: attention(q, k, v, scale=1.0),
        (1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4),
    )  # fmt: skip


@pytest.mark.parametrize("mode", [2, 3])
def test_fusion_attention_compressed_causal_masks(mode):
    shapes = (1, 2, 5, 4), (1, 2, 9, 4), (1, 2, 9, 4)
    shift = 0 if mode == 2 else 9 - 5
    allowed = torch.arange(9)[None] <= torch.arange(5)[:, None] + shift
    compressed = torch.ones(2048, 2048, dtype=torch.bool).triu(1).to(NPU)
    check(
        lambda q, k, v: torch_npu.npu_fusion_attention(
            q, k, v, 2, "BNSD", scale=0.5, atten_mask=compressed, sparse_mode=mode
        )[0],
        lambda q, k, v: attention(q, k, v, scale=0.5, allowed=allowed),
        *shapes,
    )


def test_fusion_attention_of_packed_sequences():
    lengths = [3, 5]
    ends = [3, 8]

    def cpu(q, k, v):
        parts = [
            attention(a.transpose(0, 1), b.transpose(0, 1), c.transpose(0, 1), scale=0.5)
            for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        ]
        return torch.cat([part.transpose(0, 1) for part in parts])

    check(
        lambda q, k, v: torch_npu.npu_fusion_attention(
            q, k, v, 2, "TND", scale=0.5, actual_seq_qlen=ends, actual_seq_kvlen=ends
        )[0],
        cpu,
        (8, 2, 4), (8, 2, 4), (8, 2, 4),
    )  # fmt: skip


def test_fusion_attention_statistics_merge_to_the_whole():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 4, dtype=torch.float64).to(NPU) for _ in range(3))
    whole = torch_npu.npu_fusion_attention(query, key, value, 2, "BNSD", scale=0.5)
    assert whole[1].shape == whole[2].shape == (1, 2, 6, 8)
    halves = [
        torch_npu.npu_fusion_attention(
            *(to_layout(x, "SBH").contiguous() for x in (query, k, v)), 2, "SBH", scale=0.5
        )
        for k, v in zip(key.split(3, 2), value.split(3, 2), strict=True)
    ]
    out, maximum, total = torch_npu.npu_ring_attention_update(
        *(halves[0][i] for i in range(3)), *(halves[1][i] for i in range(3))
    )
    torch.testing.assert_close(out.cpu(), to_layout(whole[0], "SBH").cpu(), **EXACT)
    torch.testing.assert_close(maximum.cpu(), whole[1].cpu(), **EXACT)
    torch.testing.assert_close(total.cpu(), whole[2].cpu(), **EXACT)


def test_fusion_attention_dropout_comes_from_the_device_generator():
    query, key, value = (torch.randn(1, 2, 32, 4).to(NPU) for _ in range(3))

    def run():
        return torch_npu.npu_fusion_attention(query, key, value, 2, "BNSD", keep_prob=0.5)[0]

    cpu_state = torch.get_rng_state()
    torch.npu.manual_seed(4)
    first, second = run(), run()
    torch.npu.manual_seed(4)
    assert (run() == first).all()
    assert (first != second).any()
    assert (torch.get_rng_state() == cpu_state).all()


def rms(x, gamma, epsilon=1e-6):
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * gamma


def test_rms_norm():
    check(lambda x, g: torch_npu.npu_rms_norm(x, g)[0], rms, (3, 5, 8), (8,))
    check(
        lambda x, g: torch_npu.npu_rms_norm(x, g, 0.1)[0], lambda x, g: rms(x, g, 0.1), (4, 8), (8,)
    )


def test_swiglu():
    def cpu(x):
        gate, up = x.chunk(2, -1)
        return gate * gate.sigmoid() * up

    check(torch_npu.npu_swiglu, cpu, (3, 5, 8))


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul(mode):
    def turned(x):
        if mode == "half":
            first, second = x.chunk(2, -1)
            return torch.cat([-second, first], -1)
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)

    check(
        lambda x, cos, sin: torch_npu.npu_rotary_mul(x, cos, sin, mode),
        lambda x, cos, sin: x * cos + turned(x) * sin,
        (2, 3, 5, 8), (1, 1, 5, 8), (1, 1, 5, 8),
    )  # fmt: skip


def test_casts():
    x = torch.randn(3, 4, device=NPU, requires_grad=True)
    half = torch_npu.npu_dtype_cast(x, torch.float16)
    assert half.dtype == torch.float16
    half.sum().backward()
    assert x.grad.dtype == torch.float32
    assert (x.grad == 1).all()
    cast = torch_npu.npu_format_cast(x.detach(), 29)
    assert (cast.cpu() == x.detach().cpu()).all(), "another layout of the same values"


def test_quantized_products():
    torch.manual_seed(1)
    x = torch.randn(5, 16)
    codes, scale = torch_npu.npu_dynamic_quant(x.half().to(NPU))
    assert codes.dtype == torch.int8
    restored = codes.cpu().float() * scale.cpu()[:, None]
    assert (restored - x.half().float()).abs().max() <= scale.cpu().max() / 2 * 1.001
    a = torch.randint(-8, 8, (5, 16), dtype=torch.int8)
    b = torch.randint(-8, 8, (16, 7), dtype=torch.int8)
    out = torch_npu.npu_quant_matmul(
        a.to(NPU), b.to(NPU), torch.ones(1).to(NPU), output_dtype=torch.bfloat16
    )
    assert (out.cpu().float() == (a.float() @ b.float()).bfloat16().float()).all()
    weight = torch.randint(-8, 8, (16, 7), dtype=torch.int8)
    weighted = torch_npu.npu_weight_quant_batchmatmul(
        x.half().to(NPU), weight.to(NPU), torch.full((7,), 0.5).half().to(NPU)
    )
    expected = x.half().double() @ (weight.double() * 0.5)
    torch.testing.assert_close(weighted.cpu().double(), expected, rtol=2e-3, atol=2e-2)


def test_int4_weights_are_packed():
    codes = torch.randint(-8, 8, (4, 16), dtype=torch.int32)
    packed = torch_npu.npu_convert_weight_to_int4pack(codes.to(NPU))
    expected = REFERENCES["npu_convert_weight_to_int4pack"](codes)
    assert packed.dtype == torch.int32
    assert packed.shape == (4, 2)
    assert (packed.cpu() == expected).all()


def test_torch_npus_own_fused_adamw():
    torch.manual_seed(2)
    start = torch.randn(6)

    def train(make, device):
        parameter = start.clone().to(device).requires_grad_()
        optimizer = make([parameter])
        for step in range(4):
            optimizer.zero_grad()
            (parameter * torch.arange(6.0, device=device)).sin().sum().mul(step + 1).backward()
            optimizer.step()
        return parameter.detach().cpu()

    found = train(lambda p: torch_npu.optim.NpuFusedAdamW(p, lr=0.01, weight_decay=0.1), NPU)
    expected = train(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), "cpu")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_wrong_arguments_raise_on_the_chip_too():
    x = torch.randn(1, 2, 4, 4).to(NPU)
    with pytest.raises((ValueError, RuntimeError), match="layout"):
        torch_npu.npu_fusion_attention(x, x, x, 2, "NBSD")
    with pytest.raises(RuntimeError, match="same device"):
        torch_npu.npu_rms_norm(x, torch.ones(4))

"""Norms, activations, rotary embedding, casts, matmuls, losses and AdamW of `torch.ops.npu`.

Each is compared in float64 with its page's formula written here in scalars or in other torch, and
each gradient with autograd of that formula. The controls are the errors that are easy to make.
"""

import math

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES

HALVES = [torch.float16, torch.bfloat16]


def numbers(*shape, requires_grad=False, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_(requires_grad)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def differs(actual, wrong):
    assert not torch.allclose(actual, wrong, rtol=1e-3, atol=1e-3), "the control passes too"


def strided(tensor):
    """The same values with other strides, and NaN between them."""
    return torch.stack([tensor, torch.full_like(tensor, math.nan)], -1)[..., 0]


# --- norms ------------------------------------------------------------------------------------


def rms(x, gamma, epsilon):
    """`1 / sqrt(mean(x^2) + epsilon)`, row by row."""
    flat = x.reshape(-1, gamma.numel())
    roots = [
        math.sqrt(sum(v * v for v in row.tolist()) / len(row) + epsilon) for row in flat.detach()
    ]
    return torch.tensor([1 / root for root in roots], dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 7), 1), ((2, 3, 5), 1), ((2, 3, 5), 2), ((4, 1), 1), ((2, 3), 2)]
)
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_rms_norm(shape, axes, epsilon) -> None:
    x, gamma = numbers(*shape), numbers(*shape[len(shape) - axes :])
    out, rstd = REFERENCES["npu_rms_norm"](strided(x), gamma, epsilon)
    reciprocal = rms(x, gamma, epsilon).view(*shape[: len(shape) - axes], *(1,) * axes)
    close(rstd, reciprocal)
    close(out, x * reciprocal * gamma)
    if epsilon == 0.5:
        differs(
            out, x / (x.square().mean(tuple(range(-axes, 0)), keepdim=True).sqrt() + 0.5) * gamma
        )
        root_of_sum = x.square().sum(tuple(range(-axes, 0)), keepdim=True)
        if gamma.numel() > 1:
            differs(out, x / (root_of_sum + 0.5).sqrt() * gamma)


@pytest.mark.parametrize(("shape", "axes"), [((3, 7), 1), ((2, 3, 5), 2)])
def test_rms_norm_backward(shape, axes) -> None:
    x, gamma = numbers(*shape, requires_grad=True), numbers(*shape[-axes:], requires_grad=True)
    dims = tuple(range(-axes, 0))
    out = x / (x.square().mean(dims, keepdim=True) + 1e-6).sqrt() * gamma
    dy = numbers(*shape)
    expected = torch.autograd.grad(out, (x, gamma), dy)
    rstd = REFERENCES["npu_rms_norm"](x.detach(), gamma.detach())[1]
    actual = REFERENCES["npu_rms_norm_backward"](dy, x.detach(), gamma.detach(), rstd)
    for one, other in zip(actual, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wide_gamma", [False, True])
def test_rms_norm_of_halves_is_rounded_once_and_keeps_wide_statistics(dtype, wide_gamma) -> None:
    x = numbers(3, 8).to(dtype)
    gamma = numbers(8).to(torch.float32 if wide_gamma else dtype)
    out, rstd = REFERENCES["npu_rms_norm"](x, gamma)
    exact = REFERENCES["npu_rms_norm"](x.double(), gamma.double())
    assert (out.dtype, rstd.dtype) == (dtype, torch.float32)
    close(out.double(), exact[0], torch.finfo(dtype).eps)
    close(rstd.double(), exact[1], 1e-6)
    d_x, d_gamma = REFERENCES["npu_rms_norm_backward"](x, x, gamma, rstd)
    assert (d_x.dtype, d_gamma.dtype) == (dtype, torch.float32)


def test_rms_norm_of_large_halves_does_not_overflow() -> None:
    out, rstd = REFERENCES["npu_rms_norm"](torch.full((2, 8), 6e4).half(), torch.ones(8).half())
    assert torch.equal(out, torch.ones(2, 8).half())
    close(rstd, torch.full((2, 1), 1 / torch.tensor(6e4).half().item()), 1e-6)


def test_norms_of_empty_tensors() -> None:
    out, rstd = REFERENCES["npu_rms_norm"](torch.zeros(0, 4), torch.ones(4))
    assert out.shape == (0, 4)
    assert rstd.shape == (0, 1)
    with pytest.raises(ValueError, match="empty"):
        REFERENCES["npu_add_rms_norm"](torch.zeros(0, 4), torch.zeros(0, 4), torch.ones(4))


@pytest.mark.parametrize("gamma_shape", [(8,), (4, 8)])
def test_add_rms_norm(gamma_shape) -> None:
    one, two, gamma = numbers(2, 3, 4, 8), numbers(2, 3, 4, 8), numbers(*gamma_shape)
    out, rstd, total = REFERENCES["npu_add_rms_norm"](one, two, gamma, 1e-3)
    close(total, one + two)
    expected = REFERENCES["npu_rms_norm"](one + two, gamma, 1e-3)
    close(out, expected[0])
    close(rstd, expected[1])
    # the page's own two examples of shapes
    assert rstd.shape == ((2, 3, 4, 1) if len(gamma_shape) == 1 else (2, 3, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((torch.zeros(2, 3), torch.zeros(2)), ValueError),
        ((torch.zeros(2, 3), torch.zeros(1, 2, 3)), ValueError),
        ((torch.zeros(2, 3), torch.zeros(3).half()), TypeError),
        ((torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3)), TypeError),
    ],
)
def test_rms_norm_refuses(arguments, error) -> None:
    with pytest.raises(error, match="npu_rms_norm"):
        REFERENCES["npu_rms_norm"](*arguments)


def test_deep_norm_and_its_gradient() -> None:
    x, gx = numbers(3, 2, 5, requires_grad=True), numbers(3, 2, 5, requires_grad=True)
    beta, gamma = numbers(2, 5, requires_grad=True), numbers(2, 5, requires_grad=True)
    total = 0.3 * x + gx
    expected = torch.nn.functional.layer_norm(total, (2, 5), gamma, beta, 1e-6)
    plain = [t.detach() for t in (x, gx, beta, gamma)]
    mean, rstd, out = REFERENCES["npu_deep_norm"](*plain)
    close(out, expected.detach())
    flat = total.detach().flatten(1)
    close(mean.flatten(), flat.mean(1))
    close(rstd.flatten(), 1 / (flat.var(1, correction=0) + 1e-6).sqrt())
    dy = numbers(3, 2, 5)
    wanted = torch.autograd.grad(expected, (x, gx, beta, gamma), dy)
    grads = REFERENCES["npu_deep_norm_backward"](dy, plain[0], plain[1], plain[3], mean, rstd)
    for one, other in zip(grads, wanted, strict=True):
        close(one, other)


def test_layer_norm_eval() -> None:
    x, weight, bias = numbers(2, 3, 4), numbers(3, 4), numbers(3, 4)
    for item in range(2):
        values = x[item].flatten().tolist()
        mean = sum(values) / 12
        variance = sum((v - mean) ** 2 for v in values) / 12
        normal = (x[item] - mean) / math.sqrt(variance + 0.1)
        out = REFERENCES["npu_layer_norm_eval"](x, [3, 4], weight, bias, 0.1)
        close(out[item], normal * weight + bias)
        close(REFERENCES["npu_layer_norm_eval"](x, [3, 4], eps=0.1)[item], normal)


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_silu(affine) -> None:
    x = numbers(2, 6, 3)
    weight, bias = (numbers(6), numbers(6)) if affine else (None, None)
    out, mean, rstd = REFERENCES["npu_group_norm_silu"](x, weight, bias, 3, 0.01)
    for item in range(2):
        for group in range(3):
            part = x[item, 2 * group : 2 * group + 2]
            values = part.flatten().tolist()
            average = sum(values) / 6
            root = 1 / math.sqrt(sum((v - average) ** 2 for v in values) / 6 + 0.01)
            close(mean[item, group], torch.tensor(average, dtype=torch.float64))
            close(rstd[item, group], torch.tensor(root, dtype=torch.float64))
            normal = (part - average) * root
            if affine:
                normal = normal * weight[2 * group : 2 * group + 2, None]
                normal = normal + bias[2 * group : 2 * group + 2, None]
            close(out[item, 2 * group : 2 * group + 2], normal / (1 + (-normal).exp()))
    with pytest.raises(ValueError, match="group=4"):
        REFERENCES["npu_group_norm_silu"](x, None, None, 4)


# --- activations ------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def page_gelu(x, approximate):
    if approximate == "none":
        return x * torch.distributions.Normal(0.0, 1.0).cdf(x)
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


POINTWISE = {
    "npu_gelu": (lambda x: page_gelu(x, "none"), lambda dy, x, y: ("npu_gelu_backward", (dy, x))),
    "npu_fast_gelu": (
        lambda x: x / (1 + torch.exp(-1.702 * x)),
        lambda dy, x, y: ("npu_fast_gelu_backward", (dy, x)),
    ),
    "fast_gelu": (
        lambda x: x / (1 + torch.exp(-1.702 * x)),
        lambda dy, x, y: ("npu_fast_gelu_backward", (dy, x)),
    ),
    "npu_silu": (lambda x: x * sigmoid(x), lambda dy, x, y: ("npu_silu_backward", (dy, x, y))),
    "npu_mish": (
        lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        lambda dy, x, y: ("npu_mish_backward", (dy, x)),
    ),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_activations_and_their_gradients(name) -> None:
    formula, gradient = POINTWISE[name]
    x = (3 * numbers(5, 7)).requires_grad_()
    expected = formula(x)
    out = REFERENCES[name](strided(x.detach()))
    close(out, expected.detach())
    dy = numbers(5, 7)
    backward, arguments = gradient(dy, x.detach(), out)
    close(REFERENCES[backward](*arguments), torch.autograd.grad(expected, x, dy)[0])
    assert REFERENCES[name](torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(TypeError, match="int64"):
        REFERENCES[name](torch.zeros(2, dtype=torch.int64))


def test_gelu_by_tanh_and_by_erf() -> None:
    x, dy = (2 * numbers(40)).requires_grad_(), numbers(40)
    expected = page_gelu(x, "tanh")
    close(REFERENCES["npu_gelu"](x.detach(), approximate="tanh"), expected.detach())
    grad = REFERENCES["npu_gelu_backward"](dy, x.detach(), approximate="tanh")
    close(grad, torch.autograd.grad(expected, x, dy)[0])
    assert not torch.allclose(REFERENCES["npu_gelu"](x.detach()), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="approximate"):
        REFERENCES["npu_gelu"](x.detach(), approximate="fast")


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_activations_far_out_are_finite(name, dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([-largest, -50.0, 0.0, 50.0, largest]).to(dtype)
    out = REFERENCES[name](x)
    assert torch.equal(out[2:], x[2:])
    assert (out[:2].double().abs() < 1e-6).all()
    backward, arguments = POINTWISE[name][1](torch.ones_like(x), x, out)
    grad = REFERENCES[backward](*arguments)
    assert grad.dtype == dtype
    assert torch.equal(grad[3:], torch.ones(2, dtype=dtype))
    assert (grad[:2].double().abs() < 1e-6).all()
    tanh_grad = REFERENCES["npu_gelu_backward"](torch.ones_like(x), x, approximate="tanh")
    assert tanh_grad.isfinite().all()


def test_silu_in_place_writes_its_argument() -> None:
    x = numbers(3, 4)
    expected = x * sigmoid(x)
    buffer = torch.empty(4, 3, dtype=torch.float64).t().copy_(x)
    assert REFERENCES["npu_silu_"](buffer) is buffer
    close(buffer, expected)


@pytest.mark.parametrize(("shape", "dim"), [((3, 8), -1), ((6, 5), 0), ((2, 4, 3), 1), ((2,), 0)])
def test_swiglu_gates_with_the_first_half(shape, dim) -> None:
    x = numbers(*shape, requires_grad=True)
    half = shape[dim] // 2
    first, second = x.narrow(dim, 0, half), x.narrow(dim, half, half)
    expected = first * sigmoid(first) * second
    out = REFERENCES["npu_swiglu"](x.detach(), dim)
    close(out, expected.detach())
    differs(out, (second * sigmoid(second) * first).detach())
    dy = numbers(*expected.shape)
    grad = REFERENCES["npu_swiglu_backward"](dy, x.detach(), dim)
    close(grad, torch.autograd.grad(expected, x, dy)[0])


@pytest.mark.parametrize("dtype", HALVES)
def test_swiglu_of_halves_is_rounded_once(dtype) -> None:
    x = (5 * numbers(4, 16)).to(dtype)
    exact = REFERENCES["npu_swiglu"](x.double())
    out = REFERENCES["npu_swiglu"](x)
    assert out.dtype == dtype
    close(out.double(), exact, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dim", [-3, 2])
def test_swiglu_refuses_an_axis_it_cannot_halve(dim) -> None:
    with pytest.raises(ValueError, match="npu_swiglu"):
        REFERENCES["npu_swiglu"](torch.zeros(2, 4), dim)
    with pytest.raises(ValueError, match="even"):
        REFERENCES["npu_swiglu"](torch.zeros(2, 3))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("approximate", [0, 1])
@pytest.mark.parametrize("dim", [-1, 0])
def test_geglu_activates_the_right_half_unless_told(left, approximate, dim) -> None:
    x = numbers(4, 6, requires_grad=True)
    one, two = x.chunk(2, dim)
    active, other = (one, two) if left else (two, one)
    activated = page_gelu(active, "tanh" if approximate else "none")
    arguments = {"dim": dim, "approximate": approximate, "activate_left": left}
    out, gelu = REFERENCES["npu_geglu"](x.detach(), **arguments)
    close(out, (activated * other).detach())
    close(gelu, activated.detach())
    dy = numbers(*out.shape)
    grad = REFERENCES["npu_geglu_grad"](dy, x.detach(), gelu, **arguments)
    close(grad, torch.autograd.grad(activated * other, x, dy)[0])


# --- rotary embedding -------------------------------------------------------------------------


def turned(x, mode):
    out = torch.zeros_like(x)
    depth = x.shape[-1]
    for d in range(depth):
        if mode == "half":
            sign, source = (-1, d + depth // 2) if d < depth // 2 else (1, d - depth // 2)
        else:
            sign, source = (-1, d + 1) if d % 2 == 0 else (1, d - 1)
        out[..., d] = sign * x[..., source]
    return out


# the layouts of the page: BNSD, BSND, SBND and TND with the repeated axes of r1 and r2
ROTARY = [
    ((2, 3, 5, 8), (1, 1, 5, 8)),
    ((2, 3, 5, 8), (2, 1, 5, 8)),
    ((2, 3, 5, 8), (2, 3, 5, 8)),
    ((2, 5, 3, 8), (1, 5, 1, 8)),
    ((5, 2, 3, 8), (5, 1, 1, 8)),
    ((7, 3, 6), (7, 1, 6)),
    ((1, 1, 1, 2), (1, 1, 1, 2)),
]


@pytest.mark.parametrize(("shape", "angles"), ROTARY)
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul_and_its_gradient(shape, angles, mode) -> None:
    x, r1, r2 = (numbers(*size, requires_grad=True) for size in (shape, angles, angles))
    expected = x * r1 + turned(x, mode) * r2
    plain = [t.detach() for t in (x, r1, r2)]
    out = REFERENCES["npu_rotary_mul"](*(strided(t) for t in plain), mode)
    close(out, expected.detach())
    if shape[-1] > 2:
        other = "interleave" if mode == "half" else "half"
        differs(out, plain[0] * plain[1] + turned(plain[0], other) * plain[2])
    differs(out, plain[0] * plain[1] - turned(plain[0], mode) * plain[2])
    dy = numbers(*shape)
    wanted = torch.autograd.grad(expected, (x, r1, r2), dy)
    grads = REFERENCES["npu_rotary_mul_backward"](dy, *plain, mode)
    for one, two in zip(grads, wanted, strict=True):
        close(one, two)


def test_a_rotation_keeps_lengths_and_is_half_by_default() -> None:
    x, angle = numbers(2, 3, 4, 8), numbers(1, 1, 4, 4)
    r1, r2 = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    out = REFERENCES["npu_rotary_mul"](x, r1, r2)
    close(out.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(out, REFERENCES["npu_rotary_mul"](x, r1, r2, "half"))


def test_a_matrix_takes_the_place_of_the_mode() -> None:
    x, r1, r2 = numbers(2, 3, 4, 6), numbers(1, 1, 4, 6), numbers(1, 1, 4, 6)
    matrix = turned(torch.eye(6, dtype=torch.float64), "interleave")
    out = REFERENCES["npu_rotary_mul"](x, r1, r2, "half", matrix)
    close(out, x * r1 + turned(x, "interleave") * r2)


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary_mul_casts_its_angles_to_the_inputs_dtype(dtype) -> None:
    x, r1, r2 = (
        numbers(2, 3, 4, 8).to(dtype),
        numbers(1, 1, 4, 8).float(),
        numbers(1, 1, 4, 8).float(),
    )
    out = REFERENCES["npu_rotary_mul"](x, r1, r2)
    assert out.dtype == dtype
    assert torch.equal(out, REFERENCES["npu_rotary_mul"](x, r1.to(dtype), r2.to(dtype)))
    grads = REFERENCES["npu_rotary_mul_backward"](x, x, r1, r2)
    assert {g.dtype for g in grads} == {dtype}


@pytest.mark.parametrize(
    ("shape", "angles", "mode"),
    [
        ((2, 3, 4, 7), (1, 1, 4, 7), "half"),
        ((2, 3, 4, 8), (1, 1, 3, 8), "half"),
        ((2, 3, 4, 8), (4, 8), "half"),
        ((2, 3, 4, 8), (1, 1, 4, 1), "half"),
        ((4, 8), (4, 8), "half"),
        ((2, 3, 4, 8), (1, 1, 4, 8), "quarter"),
    ],
)
def test_rotary_mul_refuses(shape, angles, mode) -> None:
    with pytest.raises(ValueError, match="npu_rotary_mul"):
        REFERENCES["npu_rotary_mul"](
            torch.zeros(shape), torch.zeros(angles), torch.zeros(angles), mode
        )


# --- casts ------------------------------------------------------------------------------------

# torch's numbers of dtypes, and torch_npu's: 256 and CANN's
CASTS = [(5, torch.float16), (6, torch.float32), (7, torch.float64), (15, torch.bfloat16)]
CASTS += [(3, torch.int32), (257, torch.float16), (256, torch.float32), (283, torch.bfloat16)]


@pytest.mark.parametrize(("number", "dtype"), CASTS)
def test_dtype_cast_takes_numbers_and_dtypes(number, dtype) -> None:
    x = 3 * numbers(4, 5)
    for given in (number, dtype):
        out = REFERENCES["npu_dtype_cast"](x, given)
        assert torch.equal(out, x.to(dtype))
        assert out.data_ptr() != x.data_ptr()
        assert torch.equal(REFERENCES["_npu_dtype_cast"](x, given), x.to(dtype))


def test_dtype_cast_backward_gives_the_inputs_dtype() -> None:
    grad = numbers(3).to(torch.bfloat16)
    backward = REFERENCES["npu_dtype_cast_backward"]
    assert torch.equal(backward(grad, torch.float32, 15, None), grad.float())
    assert torch.equal(backward(grad, 6), grad.float())
    assert torch.equal(REFERENCES["_npu_dtype_cast_backward"](grad, 6), grad.float())
    with pytest.raises(ValueError, match="input_dtype"):
        backward(grad, 6, 5)


@pytest.mark.parametrize("number", [296, 285, 8, 12, 16, torch.qint8])
def test_dtypes_that_torch_lacks_are_refused(number) -> None:
    with pytest.raises(NotImplementedError, match="npu_dtype_cast"):
        REFERENCES["npu_dtype_cast"](torch.zeros(2), number)


def test_format_casts_keep_values() -> None:
    x = numbers(2, 3, 4, 5)
    for number in (0, 2, 3, 29):
        out = REFERENCES["npu_format_cast"](x, number)
        assert torch.equal(out, x)
        assert out.data_ptr() != x.data_ptr()
    assert torch.equal(REFERENCES["npu_format_cast"](x, 29, customize_dtype=3), x)
    assert torch.equal(REFERENCES["_npu_format_cast"](x, 29), x)
    assert torch.equal(REFERENCES["_npu_format_cast.aclnn"](x, 29, 3), x)
    assert torch.equal(REFERENCES["npu_format_cast.Tensor"](x, torch.zeros(1)), x)
    assert REFERENCES["npu_format_cast_"](x, torch.zeros(1)) is x
    assert REFERENCES["npu_format_cast_.acl_format"](x, 2) is x


def test_format_casts_refuse() -> None:
    x = torch.zeros(2, 3)
    for number in (-1, 12, 5):  # unknown, "not supported in this version", no such format
        with pytest.raises(ValueError, match="acl_format"):
            REFERENCES["npu_format_cast"](x, number)
    with pytest.raises(NotImplementedError, match="customize_dtype"):
        REFERENCES["npu_format_cast"](x, 29, customize_dtype=1)
    with pytest.raises(NotImplementedError, match="input_dtype"):
        REFERENCES["_npu_format_cast.input_dtype"](x, 29, 3, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_narrow_a_reference(dtype) -> None:
    x, weight = numbers(3, 40, dtype=dtype), numbers(5, 40, dtype=dtype)
    query = numbers(1, 2, 3, 8, dtype=dtype)
    calls = [
        lambda: REFERENCES["npu_linear"](x, weight),
        lambda: REFERENCES["npu_fusion_attention"](query, query, query, 2, "BNSD")[0],
    ]
    plain = [call() for call in calls]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrowed = x @ weight.t()
        inside = [call() for call in calls]
    for one, other in zip(plain, inside, strict=True):
        assert one.dtype == other.dtype == dtype
        assert torch.equal(one, other)
    if dtype == torch.float32:
        assert not torch.equal(narrowed.float(), plain[0])


# --- matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("m", "k", "n"), [(3, 5, 7), (1, 1, 1), (0, 4, 2)])
def test_linear_and_its_gradient(m, k, n, bias) -> None:
    x, weight = numbers(m, k, requires_grad=True), numbers(n, k, requires_grad=True)
    shift = numbers(n) if bias else None
    expected = torch.einsum("mk,nk->mn", x, weight) + (shift if bias else 0)
    out = REFERENCES["npu_linear"](x.detach(), weight.detach(), shift)
    close(out, expected.detach())
    dy = numbers(m, n)
    wanted = torch.autograd.grad(expected, (x, weight), dy)
    grads = REFERENCES["npu_linear_backward"](dy, x.detach(), weight.detach())
    for one, two in zip(grads, wanted, strict=True):
        close(one, two)


def test_linear_refuses() -> None:
    with pytest.raises(ValueError, match=r"\[M, K\]"):
        REFERENCES["npu_linear"](torch.zeros(2, 3), torch.zeros(4, 2))
    with pytest.raises(TypeError, match="int8"):
        REFERENCES["npu_linear"](torch.zeros(2, 3).to(torch.int8), torch.zeros(4, 3).to(torch.int8))


@pytest.mark.parametrize(
    ("one", "two"), [((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((3, 4), (2, 4, 5))]
)
def test_bmm_and_its_gradients(one, two) -> None:
    a, b = numbers(*one, requires_grad=True), numbers(*two, requires_grad=True)
    expected = a @ b
    close(REFERENCES["npu_bmmV2"](a.detach(), b.detach(), []), expected.detach())
    dy = numbers(*expected.shape)
    wanted = torch.autograd.grad(expected, (a, b), dy)
    first = REFERENCES["npu_bmm_v2_mat1_backward"](dy, a.detach(), b.detach(), one)
    second = REFERENCES["npu_bmm_v2_mat2_backward"](dy, a.detach(), b.detach(), two)
    close(first, wanted[0])
    close(second, wanted[1])


# --- softmax and loss -------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 0.3])
def test_scaled_masked_softmax_and_its_gradient(scale) -> None:
    x = numbers(2, 2, 32, 64, requires_grad=True)
    mask = torch.rand(2, 1, 32, 64) < 0.5
    mask[0, 0, 3] = True
    scores = torch.where(mask, -10000.0, x * scale)
    powers = (scores - scores.max(-1, keepdim=True).values).exp()
    expected = powers / powers.sum(-1, keepdim=True)
    out = REFERENCES["npu_scaled_masked_softmax"](x.detach(), mask, scale)
    close(out, expected.detach())
    close(out[0, 0, 3], torch.full((64,), 1 / 64, dtype=torch.float64))
    differs(out, torch.softmax((x.detach() * scale).masked_fill(~mask, -10000.0), -1))
    dy = numbers(*x.shape)
    grad = REFERENCES["npu_scaled_masked_softmax_backward"](dy, out, mask, scale, False)
    close(grad, torch.autograd.grad(expected, x, dy)[0])


@pytest.mark.parametrize(
    ("x", "mask", "fixed", "error"),
    [
        (torch.zeros(32, 33), torch.zeros(32, 33, dtype=torch.bool), False, ValueError),
        (torch.zeros(32, 32), torch.zeros(32, 32), False, TypeError),
        (torch.zeros(32, 32), torch.zeros(2, 32, dtype=torch.bool), False, ValueError),
        (torch.zeros(32, 32), torch.zeros(32, 32, dtype=torch.bool), True, NotImplementedError),
    ],
)
def test_scaled_masked_softmax_refuses(x, mask, fixed, error) -> None:
    with pytest.raises(error, match="npu_scaled_masked_softmax"):
        REFERENCES["npu_scaled_masked_softmax"](x, mask, 1, fixed)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("ignored", "smoothing"), [(-100, 0.0), (2, 0.0), (2, 0.1)])
def test_cross_entropy_and_its_gradient(reduction, weighted, ignored, smoothing) -> None:
    x = numbers(6, 5, requires_grad=True)
    target = torch.tensor([0, 2, 4, 2, 1, 3])
    weight = torch.rand(5, dtype=torch.float64) + 0.1 if weighted else None
    arguments = {"reduction": reduction, "ignore_index": ignored, "label_smoothing": smoothing}
    expected = torch.nn.functional.cross_entropy(x, target, weight, **arguments)
    expected = expected if reduction == "none" else expected.reshape(1)
    loss, log_prob, zloss, lse = REFERENCES["npu_cross_entropy_loss"](
        x.detach(), target, weight, **arguments
    )
    close(loss, expected.detach())
    close(log_prob, x.detach() - x.detach().exp().sum(1, keepdim=True).log())
    assert zloss.numel() == lse.numel() == 0
    dy = numbers(*loss.shape)
    grad = REFERENCES["npu_cross_entropy_loss_backward"](dy, log_prob, target, weight, **arguments)
    close(grad, torch.autograd.grad(expected, x, dy)[0])


def test_a_negative_class_is_never_ignored_but_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        REFERENCES["npu_cross_entropy_loss"](torch.zeros(2, 3), torch.tensor([0, -100]))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"reduction": "max"}, ValueError),
        ({"label_smoothing": 1.0}, ValueError),
        ({"return_zloss": True}, NotImplementedError),
        ({"lse_square_scale_for_zloss": 0.1}, NotImplementedError),
    ],
)
def test_cross_entropy_refuses(arguments, error) -> None:
    with pytest.raises(error, match="npu_cross_entropy_loss"):
        REFERENCES["npu_cross_entropy_loss"](torch.zeros(2, 3), torch.tensor([0, 1]), **arguments)


# --- arrangement ------------------------------------------------------------------------------


def test_one_hot() -> None:
    out = REFERENCES["npu_one_hot"](torch.tensor([[0, 2], [3, 1]]), -1, 3, 5, -1)
    expected = [[[5, -1, -1], [-1, -1, 5]], [[-1, -1, -1], [-1, 5, -1]]]
    assert torch.equal(out, torch.tensor(expected, dtype=torch.float32))
    with pytest.raises(NotImplementedError, match="num_classes"):
        REFERENCES["npu_one_hot"](torch.tensor([0]), 0, 3)


@pytest.mark.parametrize("first", [True, False])
def test_confusion_transpose_and_its_gradient(first) -> None:
    x = numbers(2, 3, 4, requires_grad=True)
    if first:
        perm, shape = [2, 0, 1], [8, 3]
        expected = x.permute(perm).reshape(shape)
    else:
        perm, shape = [1, 0], [6, 4]
        expected = x.reshape(shape).permute(perm)
    out = REFERENCES["npu_confusion_transpose"](x.detach(), perm, shape, first)
    assert torch.equal(out, expected.detach())
    if first:  # autograd hands in the input's sizes and the opposite flag
        dy = numbers(*expected.shape)
        backward = REFERENCES["npu_confusion_transpose_backward"]
        grad = backward(dy, perm, list(x.shape), not first)
        assert torch.equal(grad, torch.autograd.grad(expected, x, dy)[0])
        with pytest.raises(ValueError, match="perm"):
            backward(dy, [0, 0, 1], list(x.shape), False)


def test_confusion_transpose_backward_of_a_reshape_first() -> None:
    x = numbers(6, 4, requires_grad=True)
    expected = x.reshape(2, 3, 4).permute(2, 0, 1)
    dy = numbers(4, 2, 3)
    backward = REFERENCES["npu_confusion_transpose_backward"]
    grad = backward(dy, [2, 0, 1], [6, 4], True)
    assert torch.equal(grad, torch.autograd.grad(expected, x, dy)[0])


# --- AdamW ------------------------------------------------------------------------------------


def adamw(out, grad, step, maximize=False, lr=0.01, decay=0.1, betas=(0.9, 0.99), eps=1e-8):
    return REFERENCES["npu_apply_adam_w.out"](
        betas[0] ** (step - 1),
        betas[1] ** (step - 1),
        lr,
        decay,
        *betas,
        eps,
        grad,
        None,
        False,
        maximize,
        out=out,
    )


@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_follows_torchs_over_steps(maximize) -> None:
    parameter = numbers(4, 5, requires_grad=True)
    start = parameter.detach().clone()
    optimizer = torch.optim.AdamW(
        [parameter], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99), maximize=maximize
    )
    state = [start, torch.zeros_like(start), torch.zeros_like(start)]
    for step in range(1, 6):
        grad = numbers(4, 5)
        parameter.grad = grad.clone()
        optimizer.step()
        result = adamw(state, grad, step, maximize)
        assert [one is two for one, two in zip(result, state, strict=True)] == [True] * 3
        close(state[0], parameter.detach())
    close(state[1], optimizer.state[parameter]["exp_avg"])
    close(state[2], optimizer.state[parameter]["exp_avg_sq"])


def test_the_powers_of_the_betas_are_those_before_the_step() -> None:
    """The operator multiplies them by the betas itself: a step too many is another result."""
    start, grad = numbers(7), numbers(7)
    right, wrong = ([start.clone(), torch.zeros(7).double(), torch.zeros(7).double()] for _ in "ab")
    adamw(right, grad, 1, lr=0.5, decay=0.0)
    adamw(wrong, grad, 2, lr=0.5, decay=0.0)
    close(right[0], start - 0.5 * grad / (grad.abs() + 1e-8), 1e-7)
    differs(right[0], wrong[0])


def test_adamw_keeps_half_dtypes_and_strides() -> None:
    state = [numbers(5, 3).half().t(), torch.zeros(3, 5).half(), torch.zeros(3, 5).half()]
    before = state[0].clone()
    result = adamw(state, numbers(3, 5).half(), 1)
    assert {t.dtype for t in result} == {torch.float16}
    assert not torch.equal(state[0], before)


def test_adamw_refuses() -> None:
    grad = torch.zeros(3)
    state = [torch.zeros(3) for _ in range(3)]
    plain = (1.0, 1.0, 0.1, 0.0, 0.9, 0.99, 1e-8, grad)
    step = REFERENCES["npu_apply_adam_w.out"]
    with pytest.raises(ValueError, match="max_grad_norm"):
        step(*plain, None, True, False, out=state)
    with pytest.raises(NotImplementedError, match="amsgrad"):
        step(*plain, grad, True, False, out=state)
    with pytest.raises(ValueError, match="out has 2"):
        step(*plain, None, False, False, out=state[:2])
    with pytest.raises(ValueError, match="v has shape"):
        step(*plain, None, False, False, out=[*state[:2], torch.zeros(4)])
    with pytest.raises(NotImplementedError, match="out="):
        REFERENCES["npu_apply_adam_w"](*plain, None, False, False)

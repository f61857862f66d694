"""The contrastive losses as operators: autograd, traced code, memory, and what they refuse."""

import functools
import warnings

import pytest
import torch
from torch import Tensor

from accel_kernels.contrastive_loss import operators
from accel_kernels.contrastive_loss.differentiable import sigmoid_sum, softmax_sums
from accel_kernels.contrastive_loss.passes import Passes, SoftmaxSums
from tests.kernels.contrastive_cases import (
    CASES,
    Case,
    Inputs,
    draw,
    sigmoid_gradient_truth,
    softmax_gradient_truth,
    softmax_truth,
    upstream,
)

NAMED = {case.name: case for case in CASES}
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


@pytest.fixture
def backend(device) -> str:
    """The tiles of the device."""
    kind = device.torch_device.type
    return kind if kind in ("cpu", "npu") else "reference"


def tracked(inputs: Inputs) -> Inputs:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs[:4]]
    return Inputs(*leaves, *inputs[4:])


def softmax_of(backend: str | Passes, inputs: Inputs) -> SoftmaxSums:
    return softmax_sums(backend, *inputs.softmax)


def weighed(sums: SoftmaxSums, weights) -> Tensor:
    """A function of the sums with these gradients; -inf is left out as a loss does."""
    total = torch.zeros((), dtype=sums.x_lse.dtype, device=sums.x_lse.device)
    for one, weight in zip(sums[:4], weights, strict=True):
        total = total + (weight * torch.where(one == -torch.inf, 0.0, one)).sum()
    return total


@pytest.mark.parametrize("name", ["plain", "everything", "all absent", "no rows"])
def test_gradients_reach_every_input(name, device, backend) -> None:
    case = NAMED[name]
    dtype = torch.float32 if backend == "npu" else torch.float64
    inputs, weights = draw(case, dtype, device.torch_device), upstream(case, dtype)
    there = [weight.to(device.torch_device) for weight in weights]
    leaves = tracked(inputs)
    found = torch.autograd.grad(weighed(softmax_of(backend, leaves), there), leaves[:3])
    plain = Inputs(
        *(item.cpu() if isinstance(item, Tensor) else item for item in draw(case, dtype))
    )
    truth = softmax_gradient_truth(plain, *softmax_truth(plain)[:2], weights)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    for one, other in zip(found, truth[:3], strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(3 * sigmoid_sum(backend, *leaves.sigmoid), leaves[:4])
    for one, other in zip(found, sigmoid_gradient_truth(plain), strict=True):
        torch.testing.assert_close(one.cpu(), 3 * other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_give_float32_sums_and_gradients_of_their_own_dtype(dtype, device, backend) -> None:
    inputs = tracked(draw(NAMED["plain"], dtype, device.torch_device))
    sums = softmax_of(backend, inputs)
    total = sigmoid_sum(backend, *inputs.sigmoid)
    assert {one.dtype for one in (*sums, total)} == {torch.float32}
    found = torch.autograd.grad(sums.x_lse.sum() + total, inputs[:4])
    assert [one.dtype for one in found] == [dtype, dtype, torch.float32, torch.float32]


def test_autocast_changes_no_bit(device, backend) -> None:
    inputs = draw(NAMED["plain"], torch.float32, device.torch_device)
    results = []
    for enabled in (False, True):
        leaves = tracked(inputs)
        with torch.autocast(device.torch_device.type, torch.bfloat16, enabled=enabled):
            sums = softmax_of(backend, leaves)
            loss = sums.x_lse.sum() + sigmoid_sum(backend, *leaves.sigmoid)
            results.append([loss, *torch.autograd.grad(loss, leaves[:4])])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("only", range(4))
def test_one_input_alone_may_want_a_gradient(only, device, backend) -> None:
    inputs = draw(NAMED["plain"], torch.float32, device.torch_device)
    whole = tracked(inputs)
    expected = torch.autograd.grad(sigmoid_sum(backend, *whole.sigmoid), whole[:4])[only]
    leaves = [t.clone().requires_grad_(n == only) for n, t in enumerate(inputs[:4])]
    found = torch.autograd.grad(sigmoid_sum(backend, *leaves, inputs.pairing), leaves[only])
    assert torch.equal(found[0], expected)


def test_nothing_is_saved_where_no_gradient_is_wanted(backend, device) -> None:
    inputs = draw(NAMED["plain"], torch.float32, device.torch_device)
    assert not sigmoid_sum(backend, *inputs.sigmoid).requires_grad
    assert not softmax_of(backend, inputs).x_lse.requires_grad
    with torch.no_grad():
        assert not sigmoid_sum(backend, *tracked(inputs).sigmoid).requires_grad


def test_references_are_constants(backend, device) -> None:
    inputs = draw(NAMED["plain"], torch.float32, device.torch_device)
    reference = inputs.x_reference.clone().requires_grad_()
    sums = softmax_of(backend, inputs._replace(x_reference=reference))
    assert not sums.x_lse.requires_grad


def saved_bytes(backend: str, rows: int, kind: str) -> int:
    inputs = tracked(draw(Case("", rows=rows, depth=16), torch.float32))
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if kind == "softmax":
            softmax_of(backend, inputs)
        else:
            sigmoid_sum(backend, *inputs.sigmoid)
    return sum(found.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_what_is_saved_grows_with_the_rows_and_not_with_their_square(kind, backend) -> None:
    small, large = (saved_bytes(backend, rows, kind) for rows in (256, 1024))
    assert 0 < large <= 4 * small
    assert large < 1024 * 1024


# --- traced code -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "everything"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_operators_keep_the_rules_of_custom_operators(name, dtype) -> None:
    inputs = tracked(draw(NAMED[name], dtype))
    pairing = operators.encoded(inputs.pairing)
    of_softmax = (*inputs[:3], *inputs[4:6], *pairing, "cpu")
    torch.library.opcheck(operators.softmax, of_softmax, test_utils=CHECKS)
    torch.library.opcheck(
        operators.sigmoid, (*inputs[:4], *pairing, "cpu", True), test_utils=CHECKS
    )


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_traced_whole_with_the_same_bits(name) -> None:
    inputs = draw(NAMED[name], torch.float32)

    def loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        sums = softmax_sums("cpu", x, y, scale, *inputs[4:6], inputs.pairing)
        anchors = torch.where(sums.x_count > 0, sums.x_lse - sums.x_positive, 0.0)
        return anchors.sum() + sigmoid_sum("cpu", x, y, scale, bias, inputs.pairing)

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = tracked(inputs)[:4]
        value = function(*leaves)
        results.append([value, *torch.autograd.grad(value, leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_second_derivatives_are_refused(kind) -> None:
    inputs = tracked(draw(NAMED["plain"]))
    value = (
        softmax_of("cpu", inputs).x_lse.sum()
        if kind == "softmax"
        else sigmoid_sum("cpu", *inputs.sigmoid)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cycle of references, which create_graph makes
        (gradient,) = torch.autograd.grad(value, inputs.x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


def forward_mode(function, x: Tensor):
    """Every way in which torch asks for a derivative by forward mode."""
    one = torch.ones_like(x)
    yield lambda: torch.func.jvp(function, (x,), (one,))
    yield lambda: torch.func.jacfwd(function)(x)
    yield lambda: torch.func.hessian(function)(x)
    yield lambda: torch.func.grad(lambda x: torch.func.jvp(function, (x,), (one,))[1])(x)
    yield lambda: torch.func.jvp(torch.vmap(function), (x[None],), (one[None],))
    for leaf in (x, x.clone().requires_grad_()):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(leaf, one)
            yield functools.partial(function, dual)


# Of torch's own, at the first use of forward mode.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("place", [0, 2], ids=["x", "scale"])
def test_forward_mode_is_refused(kind, place, backend, device) -> None:
    """An operator without a rule for it would say 0."""
    inputs = draw(NAMED["plain"], torch.float32, device.torch_device)

    def loss(value: Tensor) -> Tensor:
        given = [value if n == place else item for n, item in enumerate(inputs)]
        if kind == "softmax":
            return softmax_of(backend, Inputs(*given)).x_lse.sum()
        return sigmoid_sum(backend, *Inputs(*given).sigmoid)

    for derivative in forward_mode(loss, inputs[place]):
        with pytest.raises(RuntimeError, match=r"no forward-mode derivative.*take reverse mode"):
            derivative()
    # A constant has none, and is no error.
    inputs = tracked(inputs)
    one = torch.ones((), device=device.torch_device)
    value, tangent = torch.func.jvp(lambda z: z + loss(inputs[place].detach()), (one,), (one,))
    assert tangent == 1.0
    assert value.isfinite()


# --- kernels by name ---------------------------------------------------------------------------


def test_an_unknown_kernel_is_named() -> None:
    inputs = draw(NAMED["plain"])
    with pytest.raises(ValueError, match="no kernel called 'nonsense': name one of its specs"):
        softmax_of("nonsense", inputs)


def test_a_kernel_of_ones_own(monkeypatch) -> None:
    """By its passes, as dispatch hands them over, or by the name that it is registered under."""
    monkeypatch.setattr(operators, "_passes", {})
    known, inputs = operators.passes_of("cpu"), draw(NAMED["plain"])
    asked = []

    def softmax(*given):
        asked.append(len(given))
        return known.softmax(*given)

    mine = known._replace(softmax=softmax)
    expected = softmax_of("cpu", inputs)
    operators.register("mine", mine)
    for backend in ("mine", mine, known._replace(softmax=softmax)):
        assert torch.equal(softmax_of(backend, inputs).x_lse, expected.x_lse)
    assert asked == [6, 6, 6]


def test_gradients_must_be_asked_for_where_they_are_wanted() -> None:
    inputs = tracked(draw(NAMED["plain"]))
    arguments = (*inputs[:4], *operators.encoded(inputs.pairing), "cpu", False)
    with pytest.raises(RuntimeError, match="with_gradients=False, but a gradient is wanted"):
        operators.sigmoid(*arguments)

"""How attention meets torch: derivatives of any order, torch.func, compile, export, modes."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

import accel
from accel.attention import alibi, causal, documents, key_lengths, prefix, relative_bias, window
from accel_kernels.masks import Sizes
from accel_kernels.segmented_attention import cpu_amx, operators
from accel_kernels.segmented_attention.call import Call, Dropout
from accel_kernels.segmented_attention.formula import whole_attention
from tests.kernels.attention_cases import CASES, Case, bias_of, bias_tensor, draw, mask_of

OWN = ["reference", "cpu"]
CPU = torch.device("cpu")


def small(*lengths: int, heads: int = 2, size: int = 3) -> list[Tensor]:
    return [torch.randn(1, heads, n, size, dtype=torch.float64) for n in lengths]


# --- derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mask": causal() & window(2, 0)}, "relative"),
        ({"mask": documents([0, 2, 3], [0, 2, 5]), "softcap": 2.0}, None),
        ({"dropout_p": 0.3, "dropout_seed": 3}, "dense"),
        ({"mask": prefix(2) | causal(), "softcap": 1.0}, "alibi"),
        ({"mask": causal()}, None),
        ({}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", OWN)
def test_gradcheck_and_gradgradcheck(backend, options, name) -> None:
    """Through output and log-sum-exp, in query, key, value and bias; a row may see nothing."""
    case = Case("", 2, 1, 3, 5)
    inputs = small(3, 5, 5, size=2)
    inputs[1], inputs[2] = inputs[1][:, :1], inputs[2][:, :1, :, :1]
    if name:
        inputs.append(bias_tensor(name, case.sizes._replace(batch=1)))
    inputs = [t.clone().requires_grad_() for t in inputs]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        bias = bias_of(name, tensors[3]) if name else None
        state = accel.segmented_attention(
            *tensors[:3], **options, bias=bias, segment_size=2, return_lse=True, backend=backend
        )
        return state.out, torch.where(state.lse == -math.inf, 0.0, state.lse)

    assert torch.autograd.gradcheck(function, inputs)
    # Along random directions: the formula of second derivatives is checked by itself below.
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"mask": causal() & window(2, 0)}], ids=str)
@pytest.mark.parametrize(
    ("backend", "name"),
    [*((own, name) for own in OWN for name in (None, "alibi", "dense")), ("cpu_amx", None)],
)
def test_batched_gradients(backend, options, name) -> None:
    """`is_grads_batched` maps in a way of its own, which knows no `torch.func`."""
    if backend == "cpu_amx" and (reason := cpu_amx.why_absent(torch.float32)):
        pytest.skip(reason)
    inputs = [tensor.float().requires_grad_() for tensor in small(40, 50, 50, size=8)]
    if name:
        inputs.append(bias_tensor(name, Sizes(1, 2, 40, 50)).float().requires_grad_())
    bias = bias_of(name, inputs[3]) if name else None
    state = accel.segmented_attention(
        *inputs[:3], **options, bias=bias, return_lse=True, backend=backend
    )
    outputs = (state.out, state.lse)
    grads = [torch.randn(3, *tensor.shape) for tensor in outputs]
    batched = {"is_grads_batched": True, "retain_graph": True}
    found = torch.autograd.grad(outputs, inputs, grads, **batched)
    for n in range(3):
        wanted = torch.autograd.grad(outputs, inputs, [g[n] for g in grads], retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[n], other)
    with pytest.raises(RuntimeError, match="is_grads_batched=True: torch drops it"):
        torch.autograd.grad(outputs, inputs, grads, create_graph=True, **batched)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_formula_of_second_derivatives_is_the_reference(case) -> None:
    """In value; its derivatives are autograd's own."""
    query, key, value = draw(case, torch.float64)
    bias = bias_of(case.bias, bias_tensor(case.bias, case.sizes)) if case.bias else None
    options = {
        "mask": mask_of(case, CPU),
        "bias": bias,
        "softcap": case.softcap,
        "scale": case.scale,
    }
    state = accel.segmented_attention(
        query, key, value, **options, dropout_p=case.dropout_p, dropout_seed=5, return_lse=True,
        segment_size=case.segment_size, backend="reference",
    )  # fmt: skip
    scale = 1 / math.sqrt(case.head_size) if case.scale is None else case.scale
    dropout = Dropout(case.dropout_p, 5) if case.dropout_p else None
    given = accel.attention.Bias("dense", bias) if isinstance(bias, Tensor) else bias
    out, lse = whole_attention(
        query, key, value, Call(options["mask"], scale, case.softcap, given, dropout)
    )
    assert torch.allclose(out, state.out, rtol=1e-12, atol=1e-12)
    assert torch.allclose(lse, state.lse, rtol=1e-12, atol=1e-12)


# --- torch.func --------------------------------------------------------------------------------


@pytest.fixture(params=OWN)
def loss(request):
    def function(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
        options.setdefault("mask", causal())
        out = accel.segmented_attention(q, k, v, **options, backend=request.param)
        return out.square().sum()

    return function


def by_autograd(loss, *inputs: Tensor, **options) -> Tensor:
    first = inputs[0].clone().requires_grad_()
    return torch.autograd.grad(loss(first, *inputs[1:], **options), first)[0]


def test_func_grad_and_of_it_the_jacobian(loss) -> None:
    inputs = small(4, 5, 5)
    assert torch.allclose(grad(loss)(*inputs), by_autograd(loss, *inputs), atol=1e-12)
    twice = jacrev(grad(loss))(*inputs)
    query = inputs[0].clone().requires_grad_()
    (once,) = torch.autograd.grad(loss(query, *inputs[1:]), query, create_graph=True)
    rows = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in once.flatten()]
    assert torch.allclose(twice.flatten(), torch.stack(rows).flatten(), atol=1e-12)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, 0, None), (0, None, None), (None, 2, 2)])
@pytest.mark.parametrize(
    "options",
    [{}, {"mask": key_lengths([3, 6])}, {"bias": alibi(torch.rand(2))}, {"softcap": 2.0}],
    ids=lambda options: next(iter(options), "causal"),
)
def test_vmap_of_the_gradient(loss, in_dims, options) -> None:
    """Folded into the batch, or call by call where a mask or a bias knows of the batch."""
    parts = [[torch.randn(2, 2, 6, 4, dtype=torch.float64) for _ in range(3)] for _ in range(3)]
    stacked = [
        parts[0][n] if dim is None else torch.stack([p[n] for p in parts], dim)
        for n, dim in enumerate(in_dims)
    ]

    def one(*inputs: Tensor) -> Tensor:
        return loss(*inputs, **options)

    for function in (one, grad(one)):
        mapped = vmap(function, in_dims=in_dims)(*stacked)
        for m in range(3):
            inputs = [parts[0 if dim is None else m][n] for n, dim in enumerate(in_dims)]
            wanted = one(*inputs) if function is one else by_autograd(one, *inputs)
            assert torch.allclose(mapped[m], wanted, atol=1e-12)


def test_vmap_over_a_bias(loss) -> None:
    inputs, tables = small(4, 5, 5), torch.randn(3, 2, 5, dtype=torch.float64)

    def of_table(table: Tensor) -> Tensor:
        return loss(*inputs, bias=relative_bias(table))

    mapped = vmap(grad(of_table))(tables)
    for table, found in zip(tables, mapped, strict=True):
        table = table.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(of_table(table), table)
        assert torch.allclose(found, wanted, atol=1e-12)


def test_vmap_with_dropout_asks_for_a_decision(loss) -> None:
    q, k, v = (torch.randn(3, 1, 1, 4, 2) for _ in range(3))
    options = {"dropout_p": 0.5, "dropout_seed": 1}
    with pytest.raises(RuntimeError, match="randomness='same'"):
        vmap(lambda *t: loss(*t, **options), randomness="different")(q, k, v)
    found = vmap(lambda *t: loss(*t, **options), randomness="same")(q, k, v)
    assert torch.allclose(found[1], loss(q[1], k[1], v[1], **options))


# --- compile and export ------------------------------------------------------------------------

TRACED = {
    "full": {},
    "causal": {"is_causal": True},
    "window with sinks": {"mask": window(3, 0, sinks=1)},
    "documents": {"mask": documents([0, 3, 6], within=causal())},
    "union": {"mask": causal() | prefix(2), "softcap": 2.0},
    "dense": {"mask": torch.rand(6, 6) < 0.7},
    "dropout": {"dropout_p": 0.3},
    "alibi": {"bias": alibi(torch.rand(2))},
    "relative": {"bias": relative_bias(torch.randn(1, 5))},
    "lse": {"return_lse": True},
}


@pytest.mark.parametrize("options", TRACED.values(), ids=TRACED)
@pytest.mark.parametrize("backend", OWN)
def test_compiles_in_one_graph_to_the_same_bits(backend, options) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor):
        return accel.segmented_attention(q, k, v, **options, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    base = [torch.randn(2, 2, 6, 4) for _ in range(3)]

    def run(function) -> list[Tensor]:
        torch.manual_seed(1)
        leaves = [t.clone().requires_grad_() for t in base]
        found = function(*leaves)
        outs = list(found) if options.get("return_lse") else [found]
        loss = sum(out.square().sum() for out in outs)
        return [*(out.detach() for out in outs), *torch.autograd.grad(loss, leaves)]

    for a, b in zip(run(compiled), run(attention), strict=True):
        assert torch.equal(a, b)


def test_compiles_by_the_automatic_choice_with_dynamic_lengths_and_a_mask_made_inside() -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = (causal() & window(3, 0)) | prefix(2)
        return accel.segmented_attention(q, k, v, mask=mask)

    torch._dynamo.reset()
    graphs = 0

    def count(module: torch.fx.GraphModule, _: list[Tensor]):
        nonlocal graphs
        graphs += 1
        return module.forward

    compiled = torch.compile(attention, fullgraph=True, backend=count, dynamic=True)
    for length in (514, 530, 550):
        inputs = [torch.randn(1, 2, length, 4) for _ in range(3)]
        assert torch.equal(compiled(*inputs), attention(*inputs))
    # Where other code takes another kernel for few keys, a graph still serves any number.
    inputs = [torch.randn(1, 2, 9, 4) for _ in range(3)]
    torch.testing.assert_close(compiled(*inputs), attention(*inputs))
    assert graphs == 1


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return accel.segmented_attention(q, k, v, **self.options)


@pytest.mark.parametrize("name", ["full", "causal", "window with sinks", "union", "alibi"])
def test_exports_with_a_dynamic_length(name) -> None:
    model = Attention(**TRACED[name])
    length = torch.export.Dim("length", min=2)
    inputs = tuple(torch.randn(1, 2, 6, 4) for _ in range(3))
    program = torch.export.export(model, inputs, dynamic_shapes=({2: length},) * 3)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("accel_kernels.segmented_attention.default") == 1
    longer, shorter = ([torch.randn(1, 2, n, 4) for _ in range(3)] for n in (530, 11))
    assert torch.equal(program.module()(*longer), model(*longer))
    torch.testing.assert_close(program.module()(*shorter), model(*shorter))


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_opcheck(backend, kind) -> None:
    inputs = [torch.randn(2, 2, n, 4, requires_grad=True) for n in (5, 6, 6)]
    call = Call(None, 0.5)
    if kind == "everything":
        bias = alibi(torch.rand(2).requires_grad_())
        call = Call(causal() | prefix(2), 0.5, 2.0, bias, Dropout(0.2, 5), 3, True)
    arguments = (*inputs, *operators._encoded(inputs[0], inputs[1], call), backend)
    found = torch.library.opcheck(operators.forward, arguments)
    assert set(found.values()) == {"SUCCESS"}


# --- modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "pairs"),
    [
        (None, 8 * 8), (causal(), 36), (window(1, 0), 15), (documents([0, 4, 8]), 32),
        (torch.ones(8, 8, dtype=torch.bool).tril(-1), 28),
    ],
    ids=str,
)  # fmt: skip
def test_flops_count_what_is_seen(mask, pairs) -> None:
    """Two products forward, five backward, over two batch entries and two heads."""
    leaves = [torch.randn(2, 2, 8, 16, requires_grad=True) for _ in range(3)]
    with FlopCounterMode(display=False) as counter:
        accel.segmented_attention(*leaves, mask=mask).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * pairs * 16 * 2 * (2 + 5)


def test_fake_tensors_compute_nothing() -> None:
    with torch._subclasses.FakeTensorMode():
        query, value = torch.empty(1, 4, 10**6, 64), torch.empty(1, 2, 10**6, 32)
        key = torch.empty(1, 2, 10**6, 64)
        state = accel.segmented_attention(query, key, value, is_causal=True, return_lse=True)
    assert state.out.shape == (1, 4, 10**6, 32)
    assert state.lse.shape == (1, 4, 10**6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_operator_itself_follows_autocast(dtype) -> None:
    inputs = [torch.randn(1, 2, 6, 4) for _ in range(3)]
    arguments = (*operators._encoded(inputs[0], inputs[1], Call(None, 0.5)), "reference")
    with torch.autocast("cpu", dtype=dtype):
        out, _ = operators.forward(*inputs, *arguments)
        double, _ = operators.forward(*(t.double() for t in inputs), *arguments)
    assert out.dtype == dtype
    assert double.dtype == torch.float64


def test_the_operator_under_vmap() -> None:
    inputs = [torch.randn(3, 1, 2, 6, 4) for _ in range(3)]
    arguments = (*operators._encoded(inputs[0][0], inputs[1][0], Call(None, 0.5)), "reference")

    def one(*tensors: Tensor) -> Tensor:
        return operators.forward(*tensors, *arguments)[0]

    assert torch.equal(vmap(one)(*inputs)[1], one(*(t[1] for t in inputs)))

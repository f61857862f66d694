"""A share of PyTorch's own OpInfo samples; benchmarks/opinfo_agreement.py runs all of them."""

import pytest
import torch
import torch.nn.functional as F

from accel.simulate.operators import registration
from tests.ascend import opinfo, opinfo_direct, opinfo_expected
from tests.ascend.opinfo_compare import NPU, Rule, compare
from tests.ascend.opinfo_formulas import FORMULAS
from tests.ascend.opinfo_written import WRITTEN

SAMPLES = 2
PAIRS = opinfo.sampled_pairs()
WRITTEN_CASES = tuple(
    opinfo_direct.written_cases(f"aten::{name}" for name in sorted(WRITTEN | FORMULAS))
)
DRAWN = 20_000


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.name for pair in PAIRS])
def test_an_opinfo_gives_the_results_and_gradients_of_the_cpu(pair):
    outcome = opinfo.check(pair, SAMPLES)
    assert not outcome.misses


def test_every_opinfo_is_in_the_share():
    assert {pair.operator for pair in PAIRS} == {pair.operator for pair in opinfo.pairs()}


@pytest.mark.parametrize("case", WRITTEN_CASES, ids=[case.name for case in WRITTEN_CASES])
def test_a_kernel_called_by_its_schema_agrees(case):
    miss, _ = case.check()
    assert miss is None


def test_every_expected_deviation_names_an_opinfo_and_a_reason():
    names = {pair.operator for pair in opinfo.pairs()}
    reasons = {name: text for name, (_, text) in opinfo_expected.ROUNDED.items()}
    for table in (
        opinfo_expected.ANY_VALUES,
        opinfo_expected.NO_OUT,
        opinfo_expected.NO_STRIDED_OUT,
        opinfo_expected.FALLS_BACK,
        opinfo_expected.HOST_ARGUMENTS,
    ):
        reasons |= table
    assert reasons.keys() <= names
    assert all(reasons.values())


def test_kernels_that_are_not_reached_are_registered():
    registered = {name for name, key in registration.kinds() if key == registration.DEVICE_KEY}
    assert opinfo_expected.NOT_REACHED.keys() <= registered


# --- the comparison itself ------------------------------------------------------------------------


def _tree(*args):
    return None, args, {}


def _on_npu(tensor):
    return tensor.device.type == "npu"


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda x: x + 1e-6 * _on_npu(x), "value"),
        (
            lambda x: x.double() if _on_npu(x) and x.dtype == torch.int64 else x[: 3 - _on_npu(x)],
            "",
        ),
        (lambda x: x.cpu(), "on cpu"),
        (lambda x: (x.detach() * 2 + x) if _on_npu(x) else x * 3, "gradients"),
        (lambda x: x.view(7) if _on_npu(x) else x, "NPU raises"),
        (lambda x: x if _on_npu(x) else x.view(7), "CPU raises"),
    ],
)
def test_a_difference_is_seen(function, part):
    operand = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    miss, _ = compare(lambda tree: function(*tree[1]), _tree(operand), Rule())
    assert miss is not None
    assert part in miss


def test_operands_keep_strides_overlap_and_lazy_bits():
    base = torch.randn(4, 6, dtype=torch.complex64)
    operands = _tree(base[:, ::2].t(), base, base.conj(), base.conj().imag, base[:1].expand(3, 6))
    _, moved, _ = opinfo.placed(operands, NPU, Rule())
    for ours, theirs in zip(moved, operands[1], strict=True):
        assert (ours.stride(), ours.is_conj(), ours.is_neg()) == (
            theirs.stride(),
            theirs.is_conj(),
            theirs.is_neg(),
        )
        assert torch.equal(ours.cpu(), theirs)
    assert len({tensor.untyped_storage().data_ptr() for tensor in moved}) == 1


# --- random operators -----------------------------------------------------------------------------

DRAWS = {
    "rand": lambda device: torch.rand(DRAWN, device=device),
    "randn": lambda device: torch.randn(DRAWN, device=device),
    "randint": lambda device: torch.randint(3, 17, (DRAWN,), device=device),
    "normal_": lambda device: torch.empty(DRAWN, device=device).normal_(2, 3),
    "uniform_": lambda device: torch.empty(DRAWN, device=device).uniform_(-1, 4),
    "exponential_": lambda device: torch.empty(DRAWN, device=device).exponential_(2),
    "bernoulli": lambda device: torch.full((DRAWN,), 0.3, device=device).bernoulli(),
    "dropout": lambda device: F.dropout(torch.ones(DRAWN, device=device), 0.25),
    "multinomial": lambda device: torch.multinomial(
        torch.tensor([0.1, 0.2, 0.7], device=device), DRAWN, replacement=True
    ),
    "randperm": lambda device: torch.randperm(DRAWN, device=device),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_random_operator_has_the_distribution_of_the_cpu(name):
    drawn = [DRAWS[name](device).cpu().double() for device in ("cpu", NPU)]
    deviation = drawn[0].std().item()
    # Five standard errors of a difference of means, and of deviations of flat-tailed values.
    limit = 5 * deviation * (2 / DRAWN) ** 0.5
    assert abs(drawn[0].mean() - drawn[1].mean()) < limit
    assert abs(drawn[0].std() - drawn[1].std()) < 3 * limit


@pytest.mark.parametrize("name", DRAWS)
def test_a_random_operator_follows_the_seed_of_the_device(name):
    torch.npu.manual_seed(5)
    first, second = DRAWS[name](NPU), DRAWS[name](NPU)
    torch.npu.manual_seed(5)
    again = DRAWS[name](NPU)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


# --- found by the comparison ----------------------------------------------------------------------


def test_an_output_that_is_an_input_is_not_resized():
    narrow, wide = torch.ones(10, 1, 5, device=NPU), torch.ones(10, 10, 5, device=NPU)
    with pytest.raises(RuntimeError, match="broadcast shape"):
        narrow.ldexp_(wide)


def test_an_output_that_overlaps_an_input_raises():
    memory = torch.arange(6.0, device=NPU)
    with pytest.raises(RuntimeError, match="single memory location"):
        torch.gather(memory, 0, torch.tensor([0, 1, 2], device=NPU), out=memory[3:])


def test_a_conjugate_view_is_read_conjugated():
    value = torch.tensor([[1 + 2j, 3 - 1j]], device=NPU)
    assert torch.equal(value.mH.cpu(), value.cpu().mH)
    assert torch.equal((value @ value.mH).cpu(), value.cpu() @ value.cpu().mH)


def test_a_sparse_result_keeps_its_elements():
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]], device=NPU)
    sparse = dense.to_sparse()
    assert sparse.layout == torch.sparse_coo
    assert torch.equal(sparse.to_dense().cpu(), dense.cpu())

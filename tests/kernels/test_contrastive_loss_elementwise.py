"""What is done to the elements of a tile, by PyTorch and by compiled code, and lists of pairs."""

import pytest
import torch
from torch import Tensor

from accel_kernels.budgets import unit_roundoff
from accel_kernels.contrastive_loss import cpu_avx512
from accel_kernels.contrastive_loss.tiles.pairs import KeyedPairs, equal_pairs
from accel_kernels.contrastive_loss.tiles.settings import TorchElementwise

# Below, at and above a vector of 16, a strip of 128 and a block of 16 rows.
SIZES = [(1, 1), (3, 17), (16, 128), (33, 129), (100, 333), (0, 5), (5, 0)]
UNIT = unit_roundoff(torch.float32)


@pytest.fixture(params=["torch", "compiled"])
def elementwise(request):
    if request.param == "torch":
        return TorchElementwise()
    if (reason := cpu_avx512.why_absent()) is not None:
        pytest.skip(f"cpu_avx512 {reason}")
    return cpu_avx512.CompiledElementwise()


def logits_of(rows: int, columns: int, spread: float = 12.0) -> Tensor:
    return spread * torch.randn(rows, columns) - 4.0


def near(found: Tensor, truth: Tensor, units: float) -> None:
    """Within so many units of roundoff of what it should be."""
    assert ((found.double() - truth).abs() <= units * UNIT * truth.abs()).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_of_exponentials(elementwise, size) -> None:
    logits = logits_of(*size)
    rows, columns = torch.rand(size[0]), torch.rand(size[1])
    # What is subtracted is a whole number, and the difference of moderate size rounds once.
    powers = (logits - 7.0).double().exp()
    expected = rows.double() + powers.sum(1), columns.double() + powers.sum(0)
    elementwise.exp_sums(logits, 7.0, rows, columns)
    # An exponential is good to two units; sums of positive numbers add less than their logarithm.
    near(rows, expected[0], 12)
    near(columns, expected[1], 12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_weights(elementwise, size) -> None:
    logits, scratch = logits_of(*size), torch.empty(size)
    rows, columns = torch.randn(size[0]), torch.randn(size[1])
    factors = (rows[:, None] + columns).double()
    expected = (logits - 3.0).double().exp() * factors
    elementwise.weigh(logits, 3.0, rows, columns, scratch)
    near(logits, expected, 8)


@pytest.mark.parametrize("spread", [0.5, 12.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_softplus_and_its_slope(elementwise, size, spread) -> None:
    logits, scratch = logits_of(*size, spread), torch.empty(size)
    wide = logits.double()
    total = elementwise.softplus_sum(logits, scratch)
    near(total, torch.logaddexp(wide, torch.zeros_like(wide)).sum(), 12)
    near(logits, wide.sigmoid(), 8)


def test_softplus_far_from_zero_keeps_its_digits(elementwise) -> None:
    """1 + exp(-30) is 1 in float32; the sum of many such losses is not 0."""
    logits = torch.full((40, 50), -30.0)
    total = elementwise.softplus_sum(logits, torch.empty(40, 50))
    near(total, 2000 * torch.log1p(torch.tensor(-30.0).double().exp()), 16)


EXTREME = [torch.nan, -torch.inf, torch.inf, 0.0, 88.5, -87.0, -200.0, 200.0]


def test_extreme_logits(elementwise) -> None:
    logits = torch.tensor([EXTREME])
    elementwise.weigh(logits, 0.0, torch.ones(1), torch.zeros(8), torch.empty(1, 8))
    torch.testing.assert_close(logits, torch.tensor([EXTREME]).exp(), equal_nan=True)
    for value in EXTREME:
        logits = torch.tensor([[value]])
        total = elementwise.softplus_sum(logits, torch.empty(1, 1))
        given = torch.tensor(value)
        plain = torch.nn.functional.softplus(given, threshold=60.0)
        torch.testing.assert_close(total.float(), plain, equal_nan=True)
        torch.testing.assert_close(
            logits[0, 0], given.sigmoid(), equal_nan=True, atol=1e-37, rtol=1e-6
        )
        rows, columns = torch.zeros(1), torch.zeros(1)
        elementwise.exp_sums(torch.tensor([[value]]), 0.0, rows, columns)
        assert rows.isnan().any() == columns.isnan().any() == given.isnan()


def test_compiled_code_gives_the_same_bits_for_any_number_of_threads() -> None:
    if (reason := cpu_avx512.why_absent()) is not None:
        pytest.skip(f"cpu_avx512 {reason}")
    compiled, logits = cpu_avx512.CompiledElementwise(), logits_of(300, 700)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = [torch.zeros(300), torch.zeros(700), logits.clone(), logits.clone()]
        compiled.exp_sums(logits.clone(), 2.0, *found[:2])
        compiled.weigh(found[2], 2.0, torch.ones(300), torch.ones(700), logits)
        results.append([*found, compiled.softplus_sum(found[3], logits)])
    torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


# --- pairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [1, 5, 1000])
def test_pairs_with_equal_keys_are_those_of_the_whole_matrix(numbers) -> None:
    """Few enough to be listed, or looked for in each tile: the same places."""
    x, y = torch.randint(0, numbers, (37,)), torch.randint(0, numbers, (53,))
    whole = x[:, None] == y
    listed = equal_pairs(x, y)
    assert (listed is None) == (int(whole.sum()) > 4 * (37 + 53))
    if listed is not None:
        found = torch.zeros_like(whole)
        found[listed] = True
        assert torch.equal(found, whole)
        assert len(listed[0]) == whole.sum()
    keyed, found = KeyedPairs(x, y, (8, 5)), torch.zeros_like(whole)
    for r in range(0, 37, 8):
        for c in range(0, 53, 5):
            rows, columns = slice(r, min(r + 8, 37)), slice(c, min(c + 5, 53))
            pairs = keyed.of_tile(rows, columns)
            if pairs is not None:
                found[rows, columns][pairs] = True
    assert torch.equal(found, whole)

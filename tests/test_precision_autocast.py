"""One operator table: every operator, its gradients, and that nothing else changes."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from accel.precision.autocast import TABLE, Treatment, kernels, portable_autocast
from accel.precision.autocast.census import (
    ABSENT,
    NO_FLOAT,
    expected_dtype,
    measure,
    unknown_operators,
)
from accel.precision.autocast.examples import EXAMPLES, WITHOUT_EXAMPLE, Operands
from accel.precision.autocast.kernels import active, find_operator
from accel.precision.autocast.table import OF_ONE_DEVICE

LOWER = [torch.bfloat16, torch.float16]
OF_SOME_DEVICES = {
    "_scaled_dot_product_flash_attention",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
}
# Of all of them or of one operand, in float32 on the CPU too.
WITHOUT_GRADIENT = {
    "_addmm_activation", "geqrf",
    "linalg_cond.p_str", "linalg_matrix_rank", "linalg_matrix_rank.tol_tensor",
    "linalg_matrix_rank.atol_rtol_tensor", "linalg_matrix_rank.atol_rtol_float",
}  # fmt: skip
RETURNS_INTEGERS = {name for name in TABLE if name.startswith("linalg_matrix_rank")}
pytestmark = pytest.mark.filterwarnings("ignore")  # deprecated operators are in the table too


# --- the table ---------------------------------------------------------------------------------


def of(treatment):
    return [name for name in EXAMPLES if TABLE[name] is treatment]


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("treatment", Treatment, ids=lambda t: t.name)
def test_every_operator_computes_as_the_table_says(device, treatment, dtype):
    wrong = []
    for operator in of(treatment):
        for operands in (torch.float32, torch.bfloat16, torch.float16):
            row = measure(operator, operands, dtype, device.torch_device)
            exempt = {ABSENT: OF_SOME_DEVICES, NO_FLOAT: RETURNS_INTEGERS}.get(row.portable, ())
            if row.portable != row.table and operator not in exempt:
                wrong.append(row)
    assert of(treatment)
    assert wrong == []


def called(operator, device, operands, treatment, region):
    """Results and gradients; with a treatment, its casts are written out and autocast is off."""
    made = Operands(device, operands, requires_grad=True)
    arguments = EXAMPLES[operator](made)
    keywords = {}
    if treatment is not None:
        dtype = getattr(torch, expected_dtype(treatment, operands, torch.bfloat16))
        if treatment is Treatment.FLOAT32_RESULT:
            keywords["dtype"] = torch.float32
        else:
            arguments = tree_map(lambda a: a.to(dtype) if is_float(a) else a, arguments)
    with region:
        results = find_operator(operator)(*arguments, **keywords)
    results = [r for r in tree_leaves(results) if torch.is_tensor(r)]
    roots = [r for r in results if r.requires_grad]
    try:
        sum((r.abs() * 1.5).sum().float() for r in roots).backward()
    except (AttributeError, RuntimeError):  # no results that have one, or no formula
        if operator not in WITHOUT_GRADIENT:
            raise
    return [r.detach() for r in results] + [t.grad for t in made.made]


def is_float(value):
    return torch.is_tensor(value) and value.is_floating_point()


def differences(operator, here, operands):
    """What of a call is not as with casts by hand; None where the device lacks the operator."""
    off = torch.autocast(here.type, enabled=False)
    try:
        expected = called(operator, here, operands, TABLE[operator], off)
    except NotImplementedError:
        return None
    found = called(operator, here, operands, None, portable_autocast(here.type))
    assert len(found) == len(expected)
    return [
        (operator, one, other)
        for one, other in zip(found, expected, strict=True)
        if (one is None) != (other is None)
        or (one is None and operator not in WITHOUT_GRADIENT)
        or (one is not None and not same(one, other))
    ]


def same(one, other, band=1e-6):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.allclose(one, other, rtol=band, atol=band, equal_nan=True)


@pytest.mark.parametrize("operands", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("treatment", set(Treatment) - {Treatment.REFUSED}, ids=lambda t: t.name)
def test_values_and_gradients_are_those_of_casts_by_hand(device, treatment, operands):
    found = {name: differences(name, device.torch_device, operands) for name in of(treatment)}
    missing = {name for name, wrong in found.items() if wrong is None}
    assert missing <= OF_SOME_DEVICES
    assert [one for wrong in found.values() for one in wrong or ()] == []


def test_its_base_is_the_list_of_this_torch_for_cuda():
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    text = header.read_text().replace("\\\n", " ")
    lists = {
        "AT_FORALL_LOWER_PRECISION_FP": Treatment.LOWER,
        "AT_FORALL_FP32": Treatment.FLOAT32,
        "AT_FORALL_FP32_SET_OPT_DTYPE": Treatment.FLOAT32_RESULT,
        "AT_FORALL_PROMOTE": Treatment.WIDEST,
    }
    for macro, treatment in lists.items():
        (body,) = re.findall(rf"#define {macro}\(_\)(.*)", text)
        names = [
            ".".join(part.strip() for part in entry.split(","))
            for entry in re.findall(r"_\(([\w, ]+)\)", body)
        ]
        assert len(names) >= 10
        assert {name: TABLE.get(name) for name in names} == dict.fromkeys(names, treatment)


def test_it_names_everything_that_autocast_treats(device):
    for device_type in {"cpu", "cuda", device.torch_type}:
        assert unknown_operators(device_type) == ()
    assert set(EXAMPLES) | WITHOUT_EXAMPLE == set(TABLE)
    for names in OF_ONE_DEVICE.values():
        assert not names & TABLE.keys()
    assert all(find_operator(name) for name in TABLE)


# --- what is left alone ------------------------------------------------------------------------


def test_float64_integers_and_a_dtype_that_is_asked_for(device):
    x = torch.rand(4, 4, device=device.torch_device)
    with portable_autocast(device.torch_type):
        if x.double().dtype == torch.float64:  # an Ascend has none
            assert (x.double() @ x.double()).dtype == torch.float64
            assert x.double().exp().dtype == x.double().sum().dtype == torch.float64
            assert x.bfloat16().softmax(-1, dtype=torch.float64).dtype == torch.float64
        assert x.long().sum().dtype == torch.int64
        assert x.bfloat16().sum(dtype=torch.float16).dtype == torch.float16
        assert F.softmax(x.bfloat16(), -1, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tensors_of_other_devices_are_left_alone(device):
    if device.torch_type == "cpu":
        pytest.skip("there is none")
    with portable_autocast(device.torch_type):
        assert torch.rand(2, 2).bfloat16().softmax(-1).dtype == torch.bfloat16


def test_float16_and_bfloat16_meet_in_float32(device):
    """torch's own kernels raise."""
    half = torch.rand(3, device=device.torch_device, dtype=torch.float16)
    brain = torch.rand(3, device=device.torch_device, dtype=torch.bfloat16)
    with portable_autocast(device.torch_type, torch.bfloat16):
        assert torch.addcmul(brain, brain, brain).dtype == torch.bfloat16
        assert torch.addcmul(brain, half, brain).dtype == torch.float32
        assert torch.addcmul(half, half, half).dtype == torch.float32
        assert torch.cat([half, brain]).dtype == torch.float32
        assert torch.cat([half, half]).dtype == torch.float16
        assert torch.dot(half, brain).dtype == torch.float32


def test_an_unsafe_loss_is_refused_everywhere(device):
    x = torch.rand(3, device=device.torch_device)
    with portable_autocast(device.torch_type):
        with pytest.raises(ValueError, match="binary_cross_entropy_with_logits"):
            F.binary_cross_entropy(x, x)
        with torch.autocast(device.torch_type, enabled=False):
            F.binary_cross_entropy(x, x)
        assert (x @ x).dtype == torch.bfloat16  # the refusal has switched nothing off


NATIVE = """
import json, sys, warnings
import torch
warnings.simplefilter("ignore")
from accel.precision.autocast.examples import EXAMPLES, Operands
from accel.precision.autocast.kernels import find_operator, install
from accel.devices import current_device
here = current_device().torch_device

def natively():
    found = {}
    for name in EXAMPLES:
        for dtype in (torch.bfloat16,):
            made = Operands(here, dtype, requires_grad=True)
            try:
                with torch.autocast(here.type, dtype=torch.bfloat16):
                    out = find_operator(name)(*EXAMPLES[name](made))
                out = [t for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t)]
                roots = [t for t in out if t.requires_grad]
                if roots:
                    sum(t.abs().sum().float() for t in roots).backward()
                out += [m.grad for m in made.made]
                found[name, dtype] = [None if t is None else t.detach().cpu() for t in out]
            except (RuntimeError, NotImplementedError) as error:
                found[name, dtype] = str(error)[:60]
    return found

def same(one, other):
    if torch.is_tensor(one) and torch.is_tensor(other):
        close = torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True)
        return one.dtype == other.dtype and close
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other

before = natively()
assert install(here.type) and not install(here.type)
after = natively()
print([key for key in before if not same(before[key], after[key])], len(before))
"""


def test_outside_of_a_region_autocast_is_what_it_was(device):
    """Values, gradients and errors of every operator, before and after the kernels are there."""
    if device.index:
        pytest.skip("once")
    result = subprocess.run([sys.executable, "-c", NATIVE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == f"[] {len(EXAMPLES)}"


# --- the region --------------------------------------------------------------------------------


def dtypes(device):
    x = torch.rand(2, 2, device=device.torch_device)
    return (x @ x).dtype, x.bfloat16().softmax(-1).dtype


def test_nesting_and_exceptions_restore(device):
    here = device.torch_type
    plain = (torch.float32, torch.bfloat16)
    assert dtypes(device) == plain
    with portable_autocast(here, torch.bfloat16):
        assert dtypes(device) == (torch.bfloat16, torch.float32)
        with portable_autocast(here, torch.float16):
            assert dtypes(device) == (torch.float16, torch.float32)
            with torch.autocast(here, enabled=False):
                assert dtypes(device) == plain
            with portable_autocast(here, enabled=False):
                assert dtypes(device) == plain
        with pytest.raises(ZeroDivisionError), portable_autocast(here, torch.float16):
            _ = 1 / 0
        with pytest.raises((IndexError, RuntimeError)):  # in an operator of the table
            torch.softmax(torch.rand(2, device=device.torch_device), 7)
        assert dtypes(device) == (torch.bfloat16, torch.float32)
        with torch.autocast(here, dtype=torch.float16):  # still portable
            assert dtypes(device) == (torch.float16, torch.float32)
    assert dtypes(device) == plain
    assert not active()
    assert not torch.is_autocast_enabled(here)


def test_it_is_a_decorator_and_holds_in_one_thread(device):
    seen = []

    @portable_autocast(device.torch_type)
    def function():
        thread = threading.Thread(target=lambda: seen.append(dtypes(device)))
        thread.start()
        thread.join()
        return dtypes(device)

    assert function() == function() == (torch.bfloat16, torch.float32)
    assert seen == [(torch.float32, torch.bfloat16)] * 2


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64, torch.float8_e5m2], ids=str)
def test_other_dtypes_are_refused(device, dtype):
    region = portable_autocast(device.torch_type, dtype)
    with pytest.raises(ValueError, match="float16"), region:
        pass


def test_devices_without_autocast_are_refused():
    with pytest.raises(RuntimeError, match="meta"), portable_autocast("meta"):
        pass


def test_caches_of_compiled_code_know_the_table(monkeypatch):
    """They outlive the process, and with it the table that the code was compiled by."""

    def tagged():
        with torch.compiler.config.patch(cache_key_tag="the user's"):
            kernels._tag_caches()
            once = torch.compiler.config.cache_key_tag
            kernels._tag_caches()
            assert torch.compiler.config.cache_key_tag == once
            return once

    tag = tagged()
    assert tag.startswith("the user's")
    assert tag != "the user's"
    assert tagged() == tag
    monkeypatch.setitem(TABLE, "exp", Treatment.LOWER)
    assert tagged() != tag


def test_double_backward_and_functional_transforms(device):
    x = torch.rand(4, device=device.torch_device)

    def function(v):
        with portable_autocast(device.torch_type):
            return (F.layer_norm(v, (4,)).exp() * torch.outer(v, v).softmax(-1).sum(0)).sum()

    v = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(v), v, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), v)
    assert second.abs().sum() > 0
    torch.testing.assert_close(torch.func.grad(function)(x), first.detach())
    batch = torch.stack([x, x + 1])
    each = torch.func.vmap(torch.func.grad(function))(batch)
    torch.testing.assert_close(each[0], first.detach())

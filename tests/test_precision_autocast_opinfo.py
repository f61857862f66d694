"""Operators that torch's own test samples call: the same dtypes on a device as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from accel.precision.autocast import portable_autocast

# Without determined values, or with a layout that not every device has.
LEFT_OUT = {"to_sparse", "tensor_split", "float_power", "double", "bernoulli", "multinomial"}
LEFT_OUT |= {"sparse.sampled_addmm", "sparse.mm.reduce", "sparse.mm", "empty_permuted"}


def call(operator, sample, device_type):
    def moved(value):
        return tree_map(lambda t: t.detach().to(device_type) if torch.is_tensor(t) else t, value)

    arguments = moved((sample.input, *sample.args))
    try:
        with torch.no_grad(), portable_autocast(device_type):
            results = operator.op(*arguments, **moved(sample.kwargs))
    except (ValueError, RuntimeError):  # must be so on both
        return "raises"
    return [leaf.dtype for leaf in tree_leaves(results) if torch.is_tensor(leaf)]


def cases():
    from torch.testing._internal.common_methods_invocations import op_db

    for operator in op_db:
        if operator.name in LEFT_OUT or operator.name.startswith("jiterator"):  # of GPUs alone
            continue
        for dtype in (torch.float32, torch.bfloat16):
            if dtype in operator.supported_dtypes("cpu"):
                sample = next(iter(operator.sample_inputs("cpu", dtype)), None)
                if sample is not None:
                    yield operator, dtype, sample


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_every_sampled_operator_has_the_same_dtypes(device):
    if device.torch_type == "cpu" or device.index:
        pytest.skip("compares a device with the CPU")
    wrong, count = [], 0
    for operator, dtype, sample in cases():
        expected = call(operator, sample, "cpu")
        found = call(operator, sample, device.torch_type)
        count += found != "raises"
        if found != expected:
            wrong.append((operator.full_name, dtype, expected, found))
    assert wrong == []
    assert count > 1000

"""Every kernel of torch_npu is accounted for: ours, control, or raising by name."""

import pytest
import torch

from accel.simulate.operators import aclop, eight_bits, generic, memory, registration
from accel_kernels.vendor.npu import REFERENCES

NPU = torch.device("npu", 0)
KEYS = (registration.DEVICE_KEY, registration.AUTOGRAD_KEY)


def registered(key):
    return set(torch._C._dispatch_get_registrations_for_dispatch_key(key))


def test_every_kernel_is_accounted_for():
    kinds = registration.kinds()
    assert set(kinds.values()) == {"ours", "control", "raising"}
    for name in registered(registration.DEVICE_KEY):
        # Names without a schema cannot be called; collectives are torch_npu's, on our HCCL.
        if name.split("::")[0] in registration.NAMESPACES and registration.find_operator(name):
            assert (name, registration.DEVICE_KEY) in kinds, name
    for name in registered(registration.AUTOGRAD_KEY):
        if name.startswith("aten::"):
            assert kinds[name, registration.AUTOGRAD_KEY] == "ours", name


def test_other_namespaces_are_known():
    """A namespace that torch_npu adds would otherwise go unseen."""
    found = {name.split("::")[0] for key in KEYS for name in registered(key)}
    collective = {"c10d", "npu_custom_dist", "symm_mem"}
    assert found <= set(registration.NAMESPACES) | collective, found


def test_no_name_in_the_control_list_is_stale():
    kinds = registration.kinds()
    assert {name for (name, _), kind in kinds.items() if kind == "control"} == set(
        registration.CONTROL
    )


def test_operators_that_change_a_tensors_shape_in_place_are_torch_npus_own():
    """Run on a view they would change the view alone."""
    for (name, key), kind in registration.kinds().items():
        operator = registration.find_operator(name)
        if key == registration.DEVICE_KEY and torch.Tag.inplace_view in operator.tags:
            assert kind == "control", name


def test_every_reference_serves_an_operator_of_torch_npu(machine):
    kinds = registration.kinds()
    for name in REFERENCES:
        refused = eight_bits.why_not(f"npu::{name}", machine.profile) is not None
        wanted = "raising" if refused else "ours"
        assert kinds[f"npu::{name}", registration.DEVICE_KEY] == wanted, name


def test_what_has_no_implementation_raises_and_names_itself():
    raising = [name for (name, _), kind in registration.kinds().items() if kind == "raising"]
    assert len(raising) > 100
    for name in raising:
        kernel = torch.library.get_kernel(name, registration.DEVICE_KEY)
        arguments = registration.find_operator(name)._schema.arguments
        positional = [_any_value(a) for a in arguments if not a.kwarg_only]
        named = {a.name: _any_value(a) for a in arguments if a.kwarg_only}
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
        with pytest.raises(NotImplementedError, match=f"^{name} is not available on the simulated"):
            kernel.call_boxed(keys, *positional, **named)


def _any_value(argument):
    """Something of an argument's type, so that the call reaches the kernel."""
    kind = str(argument.type)
    tensor = torch.ones(1)
    if kind.startswith("Optional"):
        return None
    if kind.startswith("List"):
        return [] if "Tensor" in kind else [1]
    values = {"Tensor": tensor, "int": 1, "float": 1.0, "bool": False, "str": "a", "number": 1}
    return values.get(kind, torch.float32 if "ScalarType" in kind else 1)


def test_a_custom_operator_without_a_reference_raises():
    x = torch.ones(4, 4, device=NPU)
    with pytest.raises(NotImplementedError, match="npu::npu_iou"):
        torch.ops.npu.npu_iou(x, x)


def test_an_operator_started_from_c_plus_plus_raises_by_name():
    runtime = memory.runtime()
    assert aclop.run(b"Nonesuch", 0, None, 0, None, b"{}") != 0
    assert "Nonesuch has no implementation" in runtime.last_error()


def test_a_failing_handler_reports_its_reason():
    assert aclop.run(b"Identity", 0, None, 0, None, b"{}") != 0
    assert "Identity: IndexError" in memory.runtime().last_error()


def aclop_operator(name, inputs, output, attributes=None):
    aclop.OPERATORS[name](inputs, [output], attributes or {})
    return output


def test_operators_of_the_acl_table():
    x = torch.arange(6.0).reshape(2, 3)
    assert (aclop_operator("Identity", [x], torch.empty(2, 3)) == x).all()
    assert (aclop_operator("Cast", [x], torch.empty(2, 3, dtype=torch.int32)) == x.int()).all()
    filled = aclop_operator("Fill", [torch.tensor([2, 2]), torch.tensor(7.0)], torch.empty(2, 2))
    assert (filled == 7).all()
    turned = aclop_operator("Transpose", [x, torch.tensor([1, 0])], torch.empty(3, 2))
    assert (turned == x.T).all()
    padding = torch.tensor([0, 1, 2, 0])
    padded = aclop_operator("PadV3", [x, padding, torch.tensor(9.0)], torch.empty(3, 5))
    assert (padded == torch.nn.functional.pad(x, (2, 0, 0, 1), value=9.0)).all()
    sides = torch.tensor([0, 2, 1, 0])
    again = aclop_operator(
        "PadV3", [x, sides, torch.tensor(9.0)], torch.empty(3, 5), {"paddings_contiguous": False}
    )
    assert (again == padded).all()
    with pytest.raises(ValueError, match="reflect"):
        aclop_operator("PadV3", [x, padding], torch.empty(3, 5), {"mode": "reflect"})


# --- the generic kernel ------------------------------------------------------------------------


def test_results_keep_strides_and_identity():
    x = torch.randn(3, 4, device=NPU).t()
    assert (x + 1).stride() == (torch.empty(3, 4).t() + 1).stride()
    assert x.add_(1) is x
    assert x.contiguous().is_contiguous()
    y = torch.randn(3, 4, device=NPU)
    assert y.contiguous().data_ptr() == y.data_ptr()
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).to(NPU)
    assert channels_last.relu().is_contiguous(memory_format=torch.channels_last)


def test_outputs_take_their_sizes():
    x = torch.arange(6.0, device=NPU)
    out = torch.empty(0, device=NPU)
    assert torch.add(x, 1, out=out) is out
    assert (out.cpu() == torch.arange(1.0, 7.0)).all()
    spaced = torch.zeros(12, device=NPU)[::2]
    torch.mul(x, 2, out=spaced)
    assert (spaced.cpu() == torch.arange(6.0) * 2).all()
    torch.add(x, x, out=x)
    assert (x.cpu() == torch.arange(6.0) * 2).all(), "an output may be an operand"
    values, places = torch.empty(0, device=NPU), torch.empty(0, dtype=torch.long, device=NPU)
    torch.max(x.reshape(2, 3), 1, out=(values, places))
    assert places.tolist() == [2, 2]


def test_writes_through_views_reach_their_base():
    base = torch.zeros(3, 4, device=NPU)
    base[:, 1].add_(1)
    base.t()[2].fill_(5)
    base[0, 3:] = 7
    expected = torch.zeros(3, 4)
    expected[:, 1] += 1
    expected.t()[2] = 5
    expected[0, 3] = 7
    assert (base.cpu() == expected).all()


def test_in_place_on_a_saved_tensor_is_noticed_by_autograd():
    x = torch.randn(4, device=NPU, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_tensors(shape):
    x = torch.empty(shape, device=NPU)
    assert (x + 1).shape == shape
    assert x.sum().item() == 0
    assert torch.cat([x, x]).shape[0] == 2 * shape[0]
    assert x.cpu().shape == shape


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
     torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn],
)  # fmt: skip
def test_copies_of_every_dtype_are_exact(dtype):
    x = torch.randint(0, 256, (64,), dtype=torch.uint8)
    x = (x % 2).bool() if dtype == torch.bool else x.view(dtype) if dtype.itemsize < 16 else None
    there = x.to(NPU)
    assert there.dtype == dtype
    back = there.cpu()
    assert back.view(torch.uint8).tolist() == x.view(torch.uint8).tolist()


def test_a_plan_reads_the_schema():
    plan = generic.plan_of(torch.ops.aten.native_dropout.default)
    assert plan.is_random
    assert plan.generator is None
    plan = generic.plan_of(torch.ops.aten.max.dim_max)
    assert plan.outputs == {"max", "max_values"}
    assert plan.returns == ("max", "max_values")

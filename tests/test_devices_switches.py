"""Each switch of NumericsMode: read, set, seen by torch's own getter, and put back."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import accel
from accel.devices import NumericsMode, ascend, float32
from accel.devices.switches import SWITCHES

B = torch.backends
C = torch._C

# Switch, another value than the default, torch's own getter and what it says then.
SETTABLE = [
    ("float32_matmul_precision", "high", torch.get_float32_matmul_precision, "high"),
    ("float32_matmul_precision", "medium", lambda: B.mkldnn.matmul.fp32_precision, "bf16"),
    ("cudnn_allow_tf32", False, lambda: B.cudnn.allow_tf32, False),
    ("cuda_matmul_fp32", "tf32", lambda: B.cuda.matmul.fp32_precision, "tf32"),
    ("cudnn_conv_fp32", "ieee", lambda: B.cudnn.conv.fp32_precision, "ieee"),
    ("cudnn_rnn_fp32", "ieee", lambda: B.cudnn.rnn.fp32_precision, "ieee"),
    ("mkldnn_matmul_fp32", "bf16", lambda: B.mkldnn.matmul.fp32_precision, "bf16"),
    ("mkldnn_conv_fp32", "tf32", lambda: B.mkldnn.conv.fp32_precision, "tf32"),
    ("mkldnn_rnn_fp32", "ieee", lambda: B.mkldnn.rnn.fp32_precision, "ieee"),
    ("bf16_reduced_precision_reduction", False,
     lambda: B.cuda.matmul.allow_bf16_reduced_precision_reduction, False),
    ("fp16_reduced_precision_reduction", False,
     lambda: B.cuda.matmul.allow_fp16_reduced_precision_reduction, False),
    ("fp16_accumulation", True, lambda: B.cuda.matmul.allow_fp16_accumulation, True),
    ("rocm_attention_library", "aotriton",
     lambda: B.cuda.preferred_rocm_fa_library().name, "AOTriton"),
    ("deterministic_algorithms", "error", torch.get_deterministic_debug_mode, 2),
    ("deterministic_algorithms", "warn", torch.get_deterministic_debug_mode, 1),
    ("fill_uninitialized_memory", False,
     lambda: torch.utils.deterministic.fill_uninitialized_memory, False),
    ("cudnn_enabled", False, lambda: B.cudnn.enabled, False),
    ("cudnn_benchmark", True, lambda: B.cudnn.benchmark, True),
    ("cudnn_deterministic", True, lambda: B.cudnn.deterministic, True),
    ("cudnn_depthwise_kernel", "native", lambda: B.cudnn.depthwise_kernel, "native"),
    ("miopen_immediate", True, lambda: B.miopen.immediate, True),
    ("mkldnn_enabled", False, lambda: B.mkldnn.enabled, False),
    ("mkldnn_deterministic", True, lambda: B.mkldnn.deterministic, True),
    ("nnpack_enabled", False, lambda: C._get_nnpack_enabled(), False),
    ("quantized_engine", "qnnpack", lambda: B.quantized.engine, "qnnpack"),
    ("native_dsls_disabled", "triton", lambda: B.python_native.triton.enabled, False),
    ("flash_sdp", False, B.cuda.flash_sdp_enabled, False),
    ("mem_efficient_sdp", False, B.cuda.mem_efficient_sdp_enabled, False),
    ("cudnn_sdp", False, B.cuda.cudnn_sdp_enabled, False),
    ("overrideable_sdp", False, lambda: C._get_overrideable_sdp_enabled(), False),
    ("math_sdp", False, B.cuda.math_sdp_enabled, False),
    ("math_sdp_reduced_precision", True, B.cuda.fp16_bf16_reduction_math_sdp_allowed, True),
    ("sdp_priority", "math,flash_attention,efficient_attention,cudnn_attention,overrideable",
     lambda: C._get_sdp_priority_order()[0], int(torch.nn.attention.SDPBackend.MATH)),
    ("mha_fastpath", False, B.mha.get_fastpath_enabled, False),
    ("num_threads", 1, torch.get_num_threads, 1),
    ("default_dtype", "float64", torch.get_default_dtype, torch.float64),
    ("flush_denormal", True,
     lambda: (torch.tensor(1e-310, dtype=torch.float64) * 1).item(), 0.0),
]  # fmt: skip
# Those that the oldest torch of the supported ones lacks.
NEWER = {"cudnn_depthwise_kernel", "native_dsls_disabled", "bf16_split_k", "fp16_split_k"}
# Those that only other hardware has, or (preferences) that only a build for it lets set.
ELSEWHERE = {
    "cpu_fp16_reduced_precision_reduction", "mkldnn_allow_tf32",
    *ascend.SWITCHES,
    "blas_library", "linalg_library", "flash_implementation", "opt_einsum",
    "bf16_split_k", "fp16_split_k",
}  # fmt: skip


def present(name):
    return getattr(accel.numerics_mode(), name) is not None


def test_every_switch_is_a_field_and_is_tested():
    fields = {field.name for field in dataclasses.fields(NumericsMode)}
    assert fields == {*SWITCHES, "environment"}
    assert set(SWITCHES) == {row[0] for row in SETTABLE} | ELSEWHERE
    for name in fields:
        assert f"        {name}: " in NumericsMode.__doc__


def test_every_switch_is_read():
    mode = accel.numerics_mode()
    absent = {name for name in SWITCHES if getattr(mode, name) is None}
    assert absent <= NEWER | {n for n in ELSEWHERE if n.startswith(("npu_", "mkldnn_allow"))}
    assert all(type(getattr(mode, n)) in (bool, int, str) for n in set(SWITCHES) - absent)


def float32_state():
    """Which entries inherit, too; what no setter of torch can say again counts as tf32."""
    state = float32.Float32State.capture()
    entries = {k: "tf32" if v == "untouched" else v for k, v in state.entries.items()}
    return dataclasses.replace(state, entries=entries)


def legacy_getters():
    def ask(getter):
        try:
            return getter()
        except RuntimeError as error:
            return type(error)

    return [
        ask(torch.get_float32_matmul_precision),
        ask(lambda: B.cuda.matmul.allow_tf32),
        ask(lambda: B.cudnn.allow_tf32),
    ]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(("name", "value", "getter", "seen"), SETTABLE)
def test_set_and_put_back(name, value, getter, seen, raises):
    before, legacy, own = accel.numerics_mode(), legacy_getters(), float32_state()
    if not present(name):
        assert name in NEWER
        return
    torchs = getter()
    assert torchs != seen
    error = KeyError() if raises else None
    try:
        with accel.use_numerics_mode(NumericsMode(**{name: value})):
            assert getter() == seen
            assert getattr(accel.numerics_mode(), name) == value
            if error:
                raise error
    except KeyError:
        assert raises
    assert getter() == torchs
    assert accel.numerics_mode() == before
    assert legacy_getters() == legacy
    assert float32_state() == own


def test_split_k_goes_with_its_reduction():
    if not present("bf16_split_k"):
        return
    for dtype in ("bf16", "fp16"):
        getter = getattr(C, f"_get_cublas_allow_{dtype}_reduced_precision_reduction")
        reduction = f"{dtype}_reduced_precision_reduction"
        with accel.use_numerics_mode(NumericsMode(**{reduction: False, f"{dtype}_split_k": False})):
            assert getter() == (False, False)
            inside = accel.numerics_mode()
            with accel.use_numerics_mode(NumericsMode(**{reduction: True})):
                assert getter() == (True, True)
            assert getter() == (False, False)  # torch's own setter forgets the second
            assert accel.numerics_mode() == inside
        assert getter() == (True, True)
        with (
            pytest.raises(accel.DeviceError, match=f"{dtype}_split_k cannot be False here"),
            accel.use_numerics_mode(NumericsMode(**{f"{dtype}_split_k": False})),
        ):
            pass
        assert getter() == (True, True)


def test_a_default_device_does_not_mislead():
    with torch.device("meta"):
        assert accel.numerics_mode().flush_denormal is False


def test_opt_einsum(tmp_path, run_python):
    (tmp_path / "opt_einsum.py").write_text("def contract_path(*a, **k): raise NotImplementedError")
    result = run_python(
        """
        import torch, accel
        from accel import NumericsMode
        module = torch.backends.opt_einsum
        print(accel.numerics_mode().opt_einsum)
        with accel.use_numerics_mode(NumericsMode(opt_einsum="greedy")): print(module.strategy)
        with accel.use_numerics_mode(NumericsMode(opt_einsum="off")): print(module.enabled)
        print(module.enabled, module.strategy)
        """,
        path=tmp_path,
    )
    assert result.lines == ["auto", "greedy", "False", "True auto"]


def test_flash_implementation():
    called = []
    torch.nn.attention.register_flash_attention_impl(
        "toy", register_fn=lambda: called.append(1) or SimpleNamespace(remove=lambda: None)
    )
    if not present("flash_implementation"):
        return
    with accel.use_numerics_mode(NumericsMode(flash_implementation="toy")):
        assert torch.nn.attention.current_flash_attention_impl() == "toy"
    assert torch.nn.attention.current_flash_attention_impl() is None
    assert called == [1]

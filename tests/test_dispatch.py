"""The dispatch contract: reasons, explicit choice, context, environment, plugins."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import accel
from accel import BackendError, dispatch
from accel_kernels.segmented_attention import OPERATION
from accel_kernels.spec import KernelSpec, Operation, Request

OP = "segmented_attention"


def qkv(dtype: torch.dtype = torch.float32, **sizes: int) -> list[Tensor]:
    length = sizes.get("length", 8)
    return [torch.randn(1, 2, length, 4).to(dtype) for _ in range(3)]


def spec(**changes: object) -> KernelSpec:
    base: dict = {
        "op": OP,
        "name": "test",
        "load": lambda: None,
        "dtypes": frozenset({torch.float32}),
        "proven_on": frozenset({"cpu"}),
    }
    return KernelSpec(**{**base, **changes})


def request(**changes: object) -> Request:
    base: dict = {
        "op": OP,
        "device": "cpu",
        "dtype": torch.float32,
        "features": frozenset(),
        "sizes": (("head_size", 64),),
        "needs_grad": False,
    }
    return Request(**{**base, **changes})


@pytest.mark.parametrize(
    ("capability", "asked", "reason"),
    [
        ({}, {}, None),
        ({"devices": frozenset({"cuda"})}, {}, "runs on cuda, not on cpu"),
        ({"devices": frozenset()}, {"device": "mlu"}, None),
        ({}, {"dtype": torch.int8}, "takes float32, not int8"),
        ({}, {"features": frozenset({"mask", "bias"})}, "does not support bias, mask"),
        ({"features": frozenset({"mask"})}, {"features": frozenset({"mask"})}, None),
        ({"limits": {"head_size": (1, 32)}}, {}, "needs head_size from 1 to 32, not 64"),
        ({"limits": {"head_size": (64, 64)}}, {}, None),
        ({"requires": ("no_such_module",)}, {}, "needs no_such_module, not installed"),
        ({"requires": ("torch",)}, {}, None),
        ({"differentiable": False}, {"needs_grad": True}, "has no backward"),
        ({"differentiable": False}, {}, None),
        ({"deterministic": False}, {"deterministic": True}, "is not deterministic"),
    ],
)
def test_why_not_gives_each_reason(capability, asked, reason) -> None:
    assert spec(**capability).why_not(request(**asked)) == ([reason] if reason else [])


def test_why_not_gives_all_reasons_together() -> None:
    reasons = spec(differentiable=False).why_not(request(dtype=torch.int8, needs_grad=True))
    assert reasons == ["takes float32, not int8", "has no backward"]


def test_limits_of_a_spec_cannot_be_changed_afterwards() -> None:
    limits = {"head_size": (1, 32)}
    made = spec(limits=limits)
    limits["head_size"] = (1, 64)
    assert made.why_not(request()) != []
    with pytest.raises(TypeError):
        made.limits["head_size"] = (1, 64)


@pytest.fixture
def operation(monkeypatch):
    """A second operation whose kernels return their own names."""

    def named(name: str):
        return lambda: lambda *args, **kwargs: name

    def make(*specs: KernelSpec) -> None:
        op = Operation("toy", lambda *a, **k: request(op="toy", **k), specs)
        monkeypatch.setitem(dispatch._OPERATIONS, "toy", op)
        monkeypatch.setattr(dispatch, "_memo", {})
        monkeypatch.setattr(dispatch, "_logged", set())

    def toy(name: str, **changes: object) -> KernelSpec:
        return spec(op="toy", name=name, load=named(name), **changes)

    return make, toy


def run(**changes: object) -> str:
    backend = changes.pop("backend", None)
    return dispatch.kernel_for(request(op="toy", **changes), backend)()


def test_automatic_choice_is_the_first_without_objection_by_priority(operation) -> None:
    make, toy = operation
    make(
        toy("reference", priority=99),
        toy("slow", priority=1),
        toy("fast", priority=2, differentiable=False),
    )
    assert run() == "fast"
    assert run(needs_grad=True) == "slow"
    assert run(backend="reference") == "reference"


def test_the_reference_is_last_whatever_its_priority(operation) -> None:
    make, toy = operation
    make(toy("reference", priority=99), toy("other", priority=-99))
    assert [s.name for s in accel.backends("toy")] == ["other", "reference"]
    assert run() == "other"


def test_a_kernel_never_run_on_the_hardware_is_taken_only_by_name(operation) -> None:
    make, toy = operation
    make(toy("reference", proven_on=frozenset()), toy("new", priority=5, proven_on=frozenset()))
    assert run(device="cuda") == "reference"
    assert run(device="cuda", backend="new") == "new"
    make(toy("new", priority=5, proven_on=frozenset({"cuda"})), toy("reference"))
    assert run(device="cuda") == "new"


def test_explicit_choice_never_falls_back(operation) -> None:
    make, toy = operation
    make(toy("reference"), toy("limited", dtypes=frozenset({torch.float16})))
    with pytest.raises(BackendError) as caught:
        run(backend="limited")
    text = str(caught.value)
    assert "'limited' (chosen by argument)" in text
    assert "takes float16, not float32" in text
    assert "these can: reference" in text
    with dispatch.use_backend(toy="limited"), pytest.raises(BackendError, match="use_backend"):
        run()


def test_no_kernel_at_all_lists_every_candidate_with_its_reasons(operation) -> None:
    make, toy = operation
    make(toy("reference"), toy("other", devices=frozenset({"npu"})))
    with pytest.raises(BackendError) as caught:
        run(dtype=torch.int8)
    assert "other" in str(caught.value)
    assert "runs on npu, not on cpu" in str(caught.value)
    assert "reference" in str(caught.value)


def test_argument_beats_context_beats_environment(operation, monkeypatch) -> None:
    make, toy = operation
    make(*(toy(name) for name in ("reference", "a", "b", "c")))
    monkeypatch.setenv("ACCEL_BACKEND", "toy=a")
    assert run() == "a"
    with dispatch.use_backend(toy="b"):
        assert run() == "b"
        assert run(backend="c") == "c"
        with dispatch.use_backend(toy="c"):
            assert run() == "c"
        assert run() == "b"
    assert run() == "a"


def test_context_ends_with_an_exception(operation) -> None:
    make, toy = operation
    make(toy("reference"), toy("a"))
    with pytest.raises(KeyError), dispatch.use_backend(toy="reference"):
        raise KeyError
    assert run() == "a"


@pytest.mark.parametrize("text", ["toy", "toy=", "=a", "toy=a,,", "toy:a"])
def test_malformed_environment(operation, monkeypatch, text) -> None:
    make, toy = operation
    make(toy("a"))
    monkeypatch.setenv("ACCEL_BACKEND", text)
    with pytest.raises(ValueError, match="ACCEL_BACKEND"):
        run()


def test_unknown_names(monkeypatch) -> None:
    for call in (
        lambda: accel.segmented_attention(*qkv(), backend="nosuch"),
        lambda: accel.explain(OP, *qkv(), backend="nosuch"),
        lambda: accel.use_backend(segmented_attention="nosuch").__enter__(),
    ):
        with pytest.raises(
            ValueError, match="no backend called 'nosuch'; there are: cpu_amx, cpu, "
        ):
            call()
    for call in (
        lambda: accel.explain("nosuch"),
        lambda: accel.backends("nosuch"),
        lambda: accel.use_backend(nosuch="cpu").__enter__(),
    ):
        with pytest.raises(ValueError, match="no operation is called 'nosuch'"):
            call()


def test_a_skipped_faster_kernel_is_logged_once(operation, caplog) -> None:
    make, toy = operation
    make(toy("reference"), toy("fast", priority=9, differentiable=False))
    with caplog.at_level(logging.INFO, logger="accel"):
        for size in range(5):
            run(needs_grad=True, sizes=(("length", size),))
    assert [record.message for record in caplog.records] == [
        "toy: fast is skipped: has no backward"
    ]


def test_the_memo_is_used_and_bounded(operation, monkeypatch) -> None:
    make, toy = operation
    make(toy("reference"))
    calls = []
    original = KernelSpec.why_not
    monkeypatch.setattr(KernelSpec, "why_not", lambda self, r: calls.append(r) or original(self, r))
    monkeypatch.setattr(dispatch, "_MEMO_SIZE", 3)
    run()
    first = len(calls)
    assert first > 0
    run()
    assert len(calls) == first
    for size in range(10):
        run(sizes=(("length", size),))
    assert len(dispatch._memo) <= 3


def test_a_kernel_waits_for_sizes_that_are_worth_it() -> None:
    """Below them it serves who names it, and nobody else."""
    kernel, short = spec(worth={torch.float32: {"length": 8}}), request(sizes=(("length", 7),))
    assert kernel.why_not(short) == []
    assert kernel.not_proven(short) == ["is worth it from length 8 on, not at 7"]
    assert kernel.not_proven(request(sizes=(("length", 8),))) == []
    assert kernel.not_proven(request()) == []
    assert kernel.not_proven(short._replace(dtype=torch.bfloat16)) == []


def test_traced_code_does_not_ask_whether_sizes_are_worth_it() -> None:
    """One graph serves lengths on both sides."""
    kernel, chosen = spec(worth={torch.float32: {"length": 8}}), []

    def double(x: Tensor) -> Tensor:
        return x * 2 if kernel.not_proven(request(sizes=(("length", x.shape[0]),))) else x * 3

    def count(module: torch.fx.GraphModule, _: list[Tensor]):
        chosen.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(double, fullgraph=True, backend=count, dynamic=True)
    for length in (7, 9, 5):
        assert torch.equal(compiled(torch.ones(length)), torch.full((length,), 3.0))
    assert len(chosen) == 1


def test_explain_says_what_a_call_would_do(caplog) -> None:
    query, key, value = qkv()
    explanation = accel.explain(OP, query, key[:, :, :5], value[:, :, :5], is_causal=True)
    assert explanation.chosen == "cpu"
    assert explanation.how == "automatic"
    text = str(explanation)
    assert "segmented_attention on cpu in float32: cpu (automatic)" in text
    assert "does not support causal of unequal lengths" in text
    assert "eligible, lower priority" in text
    eighths = [t.to(torch.float8_e4m3fn) for t in (query, key, value)]
    refused = accel.explain(OP, *eighths)
    assert refused.chosen is None
    assert all(any("not float8_e4m3fn" in r for r in c.reasons) for c in refused.candidates)
    named = accel.explain(OP, query, key, value, backend="sdpa")
    assert (named.chosen, named.how) == ("sdpa", "argument")
    with accel.use_backend(segmented_attention="reference"):
        assert accel.explain(OP, query, key, value).how == "use_backend"


def test_explain_agrees_with_what_runs(monkeypatch) -> None:
    query, key, value = qkv()
    ran = []
    specs = tuple(
        KernelSpec(
            **{
                **{f: getattr(s, f) for f in s.__dataclass_fields__ if f != "missing"},
                "load": lambda s=s: lambda *a, **k: ran.append(s.name) or s.load()(*a, **k),
            }
        )
        for s in OPERATION.specs
    )
    monkeypatch.setitem(dispatch._OPERATIONS, OP, Operation(OP, OPERATION.request, specs))
    monkeypatch.setattr(dispatch, "_memo", {})
    for options in ({}, {"is_causal": True}, {"return_lse": True}, {"segment_size": 3}):
        for backend in (None, "cpu", "reference"):
            accel.segmented_attention(query, key, value, backend=backend, **options)
            assert (
                ran.pop() == accel.explain(OP, query, key, value, backend=backend, **options).chosen
            )


@pytest.mark.parametrize("backend", [None, "reference", "cpu", "sdpa"])
def test_the_dispatch_path_traces_whole_on_a_cold_call(backend) -> None:
    """Forward and backward, with the memo empty when tracing begins."""
    torch.compiler.reset()
    dispatch._memo.clear()
    # Long enough that traced code, which may not ask whether a kernel is worth it, takes the same.
    leaves = [torch.randn(1, 2, 514, 4).requires_grad_() for _ in range(3)]

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(*tensors: Tensor) -> Tensor:
        return accel.segmented_attention(*tensors, is_causal=True, backend=backend)

    out = compiled(*leaves)
    plain = accel.segmented_attention(*leaves, is_causal=True, backend=backend)
    assert torch.equal(out, plain)
    grad = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, leaves, grad),
        torch.autograd.grad(plain, leaves, grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_change_of_context_is_seen_by_compiled_code() -> None:
    torch.compiler.reset()
    seen = []

    def spy(name):
        def kernel(query, key, value, **options):
            return query * {"one": 1.0, "two": 2.0}[name], None

        seen.append(name)
        return kernel

    query, key, value = qkv()

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(*tensors: Tensor) -> Tensor:
        return accel.segmented_attention(*tensors)

    with accel.use_backend(segmented_attention="reference"):
        a = compiled(query, key, value)
        assert torch.equal(a, accel.segmented_attention(query, key, value, backend="reference"))
    with accel.use_backend(segmented_attention="sdpa"):
        b = compiled(query, key, value)
        assert torch.equal(b, accel.segmented_attention(query, key, value, backend="sdpa"))


PLUGIN = """
import torch
from accel_kernels.spec import KernelSpec
def load():
    def kernel(query, key, value, **options):
        return query * 0 + 7, None
    return kernel
SPEC = KernelSpec(op="segmented_attention", name="seven", load=load, priority=100,
                  dtypes=frozenset({torch.float32}), proven_on=frozenset({"cpu"}))
WRONG_TYPE = 3
NAME_TAKEN = KernelSpec(op="segmented_attention", name="cpu", load=load, dtypes=frozenset())
NO_SUCH_OP = KernelSpec(op="nosuch", name="x", load=load, dtypes=frozenset())
"""
PROBE = """
import torch, accel
t = torch.ones(1, 1, 2, 2)
print([s.name for s in accel.backends("segmented_attention")])
print(accel.segmented_attention(t, t, t).unique().tolist())
for failure in accel.dispatch.failures():
    print(failure.name, "|", failure.error, "|", "Traceback" in failure.traceback)
"""


@pytest.mark.without_npu
def test_kernels_of_other_packages(tmp_path: Path) -> None:
    """A plugin by entry point is chosen by its priority; broken ones are kept and break nothing."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "broken.py").write_text("raise RuntimeError('no driver')\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[accel.kernels]\nseven = plugin:SPEC\nbroken = broken:SPEC\nexits = exits:SPEC\n"
        "absent = nosuchmodule:SPEC\nwrong = plugin:WRONG_TYPE\n"
        "taken = plugin:NAME_TAKEN\nop = plugin:NO_SUCH_OP\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path[1:]])
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    present = [spec.name for spec in accel.backends("segmented_attention")]
    assert lines[0] == str(["seven", *present])
    assert lines[1] == "[7.0]"
    kept = {line.split(" | ")[0]: line for line in lines[2:]}
    assert set(kept) == {"broken", "exits", "absent", "wrong", "taken", "op"}
    assert "RuntimeError: no driver" in kept["broken"]
    assert all(line.endswith("True") for line in kept.values())
    assert result.stderr.count("run `accel doctor`") == 6


def test_a_kernel_of_torchs_own_operators_needs_no_proof_on_each_device() -> None:
    elsewhere = request(device="cuda")
    assert spec(is_plain=True).not_proven(elsewhere) == []
    assert spec().not_proven(elsewhere) == ["not yet run on real cuda hardware"]

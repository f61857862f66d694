"""Compiling the Triton kernels of the contrastive losses for GPUs that are not here.

Run by `test_contrastive_loss_triton`, in a process of its own without Triton's interpreter.
"""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accel_kernels.contrastive_loss.triton import PASSES, blocks, regions
from accel_kernels.contrastive_loss.triton.launch import Launch
from tests.kernels.contrastive_cases import Case, draw, upstream

# Triton warns at its first compilation unless it is told whether to fuse products and sums.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
SHARED = 99 * 1024  # bytes of a program on the smallest of sm_80 to sm_120
POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16",
    torch.float16: "*fp16", torch.int64: "*i64",
}  # fmt: skip
PLAIN = Case("plain", rows=300, columns=200, depth=256)
EVERYTHING = Case(
    "everything", rows=300, columns=200, depth=33, duplicates="ignore", guided=True, hardness=2.0
)
POSITIVE = Case("positive", rows=300, columns=200, depth=1, duplicates="positive")
KERNELS = ("sums_kernel", "softmax_weights_kernel", "products_kernel", "sigmoid_kernel")


def launched(case: Case, dtype: torch.dtype, monkeypatch) -> dict[str, tuple[Any, Launch, dict]]:
    """What the passes start, by kernel: of tensors without memory, as if on a GPU."""
    found: dict[str, tuple[Any, Launch, dict]] = {}

    def start(self: Launch, kernel: Any, items: int, **arguments: Any) -> None:
        given = {**self.arguments, "items": items, **arguments}
        found[kernel.fn.__name__] = kernel, self, given

    def products_precision(x: torch.Tensor) -> str:
        on_gpu = SimpleNamespace(dtype=x.dtype, device=torch.device("cuda"))
        return blocks.products_precision(on_gpu)

    monkeypatch.setattr(Launch, "start", start)
    monkeypatch.setattr(regions, "products_precision", products_precision)
    monkeypatch.setitem(blocks._BLOCKS, "meta", blocks._BLOCKS["cuda"])
    inputs = draw(case, dtype, "meta")
    given = upstream(case, dtype, "meta")
    sums = PASSES.softmax(*inputs.softmax)
    PASSES.softmax_backward(*inputs.softmax, sums.x_lse, sums.y_lse, given)
    PASSES.sigmoid(*inputs.sigmoid, with_gradients=True)
    return found


def compiled(kernel: Any, batch: Launch, given: dict[str, Any], chip: int) -> Any:
    """A kernel for a chip of that compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, known = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if signature[name] != "i32" or name in ("height", "stride"):
            known[(at,)] = [["tt.divisibility", 16]]
    cut = batch.product_blocks if "OUT" in kernel.arg_names else batch.blocks
    return triton.compile(
        ASTSource(kernel, signature, constants, known),
        target=GPUTarget("cuda", chip, 32),
        options={"num_warps": cut.warps, "num_stages": cut.stages},
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("case", "dtype", "chip"),
    [
        (PLAIN, torch.bfloat16, 90),
        *(
            pytest.param(case, dtype, chip, marks=pytest.mark.long)
            for case in (PLAIN, EVERYTHING, POSITIVE)
            for dtype in list(POINTERS)[:4]
            for chip in (80, 90)
            if (case, dtype, chip) != (PLAIN, torch.bfloat16, 90)
        ),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_compiles_for_gpus_without_atomics(name, case, dtype, chip, monkeypatch) -> None:
    found = compiled(*launched(case, dtype, monkeypatch)[name], chip)
    assert found.metadata.shared <= SHARED
    words = found.asm["ptx"].split()
    # An order of additions that the scheduler chose would change bits from run to run.
    assert not [word for word in words if word.startswith(("atom.", "red.", "multimem."))]
    if dtype in (torch.bfloat16, torch.float32):
        assert not [word for word in words if "tf32" in word]
    if dtype in (torch.bfloat16, torch.float16):
        assert [word for word in words if "mma" in word], "products take no tensor core"

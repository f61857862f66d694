"""ACC080 to ACC085: flags of torch's backends, TF32, attention kernels, torch.compile.

Also ACC063's question whether torch has NCCL, in its other form.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding, Span
from accel.convert.module import Module
from accel.convert.rules import functions_calls as calls
from accel.convert.rules.backends_rules import RULES as RULES

_CUDNN, _CUDA = "torch.backends.cudnn", "torch.backends.cuda"
_TF32 = {f"{_CUDA}.matmul.allow_tf32": "matmul", f"{_CUDNN}.allow_tf32": "conv"}
# What else `torch.backends.cuda` has: why it is right as it is, on any device.
_ATTENTION = "It chooses among CUDA's attention kernels, and is accepted without CUDA."
_ATTENTION_KERNELS = (
    "SDPAParams", "allow_fp16_bf16_reduction_math_sdp", "can_use_cudnn_attention",
    "can_use_efficient_attention", "can_use_flash_attention", "cudnn_sdp_enabled",
    "enable_cudnn_sdp", "enable_flash_sdp", "enable_math_sdp", "enable_mem_efficient_sdp",
    "flash_sdp_enabled", "fp16_bf16_reduction_math_sdp_allowed", "is_flash_attention_available",
    "math_sdp_enabled", "mem_efficient_sdp_enabled",
)  # fmt: skip
_KEPT = {
    **dict.fromkeys(_ATTENTION_KERNELS, _ATTENTION),
    "matmul": "It tunes CUDA's matrix products, and is accepted without CUDA.",
}
_FLAGGED = {
    "is_built": (
        "It tells whether torch was compiled for CUDA.",
        "Ask accel.is_available(), if an accelerator is meant.",
    ),
    "cufft_plan_cache": (
        "It sizes cuFFT's cache of plans, and raises without CUDA.",
        "Keep it behind a test for CUDA.",
    ),
    "sdp_kernel": (
        "It is deprecated, and chooses among CUDA's attention kernels.",
        "Use torch.nn.attention.sdpa_kernel([...]) with the MATH backend among those allowed, or "
        "accel.segmented_attention.",
    ),
}
_LIBRARIES = frozenset(
    {
        "blas_workspace_size", "cublas_workspace_size", "cublaslt_workspace_size",
        "preferred_blas_library", "preferred_linalg_library", "preferred_rocm_fa_library",
        "is_ck_sdpa_available",
    }
)  # fmt: skip
_QUESTIONS = ("hasattr", "getattr")
_COLLECTIVES = frozenset(
    {
        "torch.distributed.is_backend_available",
        "torch.distributed.distributed_c10d.is_backend_available",
    }
)
_GRAPH_MODES = ("max-autotune", "reduce-overhead")


def find(module: Module) -> Iterator[Finding]:
    """Uses of torch.backends.cudnn and torch.backends.cuda, and what asks for a compiler."""
    if calls.mentions(module, b"backends", b"SDPBackend", b"float32_matmul", b"cudagraph"):
        yield from _settings(module)
    if calls.mentions(module, b"compile", b"triton"):
        yield from _compilers(module)
    if calls.mentions(module, b"is_backend_available"):
        yield from _collectives(module)


def _collectives(module: Module) -> Iterator[Finding]:
    """`is_backend_available("nccl")`, which is false without CUDA; for gloo it is true."""
    for call in module.all(ast.Call):
        if module.qualified(call.func) not in _COLLECTIVES:
            continue
        backend = calls.argument(call, 0, "backend")
        named = module.constant(backend) if backend is not None else None
        if not isinstance(named, str) or named.lower() != "nccl":
            continue
        parts = module.target.call("is_accelerator_backend_available")
        span = module.span(call)
        if parts is None or calls.has_comment(module, Span(module.span(call.func).end, span.end)):
            yield module.flag(
                call, "ACC063", "It asks whether torch has NCCL.",
                "Write accel.is_accelerator_backend_available().", subject="nccl",
            )  # fmt: skip
            continue
        yield module.convert(
            call, "ACC063", "It asks for the collectives of the device that is there.", *parts
        )


def _settings(module: Module) -> Iterator[Finding]:
    imports: list[ast.Import | ast.ImportFrom] = [*module.all(ast.Import)]
    imports += module.all(ast.ImportFrom)
    for statement in imports:
        if any(_is_backend(name) for name in _imported(statement)):
            yield module.keep(statement, "ACC080", "torch.backends is there without CUDA too.")
    done: set[ast.stmt] = set()
    nodes: list[ast.Attribute | ast.Name] = [*module.all(ast.Attribute), *calls.brought(module)]
    for node in nodes:
        name = module.qualified(node)
        # The longest chain is looked at.
        if name is None or isinstance(module.parent(node), ast.Attribute):
            continue
        if _is_backend(name):
            yield from _backend(module, node, name, done)
        elif name.endswith("SDPBackend.CUDNN_ATTENTION"):
            yield _cudnn_attention(module, node)
        elif name == "torch.set_float32_matmul_precision":
            yield module.keep(
                node, "ACC081",
                "It holds on CUDA and CPU; an Ascend rounds to HF32 only after accel.allow_tf32().",
            )  # fmt: skip
        elif "cudagraph" in name and name.startswith(("torch._inductor", "torch.compiler")):
            yield module.keep(node, "ACC083", "Inductor makes graphs on CUDA only.")


def _compilers(module: Module) -> Iterator[Finding]:
    uses: list[ast.Attribute | ast.Name] = [*module.all(ast.Attribute), *calls.brought(module)]
    for use in uses:
        name = module.qualified(use) or ""
        if name == "torch.compile":
            yield _compile(module, use)
        elif name.endswith("._triton.has_triton"):
            yield module.keep(use, "ACC085", "It is false where Triton cannot run.")
    for constant in module.all(ast.Constant):
        if constant.value in ("triton.cudagraphs", "max-autotune-no-cudagraphs"):
            yield module.keep(constant, "ACC083", "An option of torch.compile, for CUDA only.")


def _is_backend(name: str) -> bool:
    return any(name == base or name.startswith(f"{base}.") for base in (_CUDNN, _CUDA))


def _imported(statement: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if statement.level:
        return []
    return [f"{statement.module}.{alias.name}" for alias in statement.names]


def _backend(module: Module, node: ast.expr, name: str, done: set[ast.stmt]) -> Iterator[Finding]:
    if name in _TF32 and isinstance(getattr(node, "ctx", None), ast.Store):
        statement = module.statement(node)
        if statement not in done:
            done.add(statement)
            yield _tf32(module, statement, node)
        return
    if name.endswith("fp32_precision") and not isinstance(getattr(node, "ctx", None), ast.Load):
        yield module.flag(
            node, "ACC081", "It rounds CUDA's float32 products to TF32, by torch's newer switch.",
            "Write accel.allow_tf32(), which is HF32 on an Ascend; torch refuses both switches in "
            "one program.", subject="fp32_precision",
        )  # fmt: skip
        return
    if name.startswith(_CUDNN):
        yield module.keep(
            node, "ACC080", "A setting of cuDNN; accepted, without effect, elsewhere."
        )
        return
    yield _cuda(module, node, name)


def _cuda(module: Module, node: ast.expr, name: str) -> Finding:
    leaf = name.removeprefix(_CUDA).lstrip(".").partition(".")[0]
    if leaf in _KEPT:
        return module.keep(node, "ACC082" if leaf != "matmul" else "ACC084", _KEPT[leaf])
    if leaf in _LIBRARIES:
        parent = module.parent(node)
        if isinstance(parent, ast.Call) and parent.func is node and not parent.args:
            return module.keep(node, "ACC084", "It asks which of CUDA's libraries is used.")
        return module.flag(
            node, "ACC084", "It chooses one of CUDA's libraries.",
            "Keep it behind a test for CUDA.", subject=name,
        )  # fmt: skip
    if leaf in _FLAGGED:
        message, advice = _FLAGGED[leaf]
        rule = "ACC082" if leaf == "sdp_kernel" else "ACC084"
        return module.flag(node, rule, message, advice, subject=name)
    if not leaf and _is_asked(module.parent(node)):
        return module.keep(node, "ACC084", "Asked what torch has, which it tells without CUDA.")
    return module.flag(
        node, "ACC084", f"{name} is of CUDA alone.", "Keep it behind a test for CUDA.", subject=name
    )


def _is_asked(parent: ast.AST) -> bool:
    return (
        isinstance(parent, ast.Call)
        and isinstance(parent.func, ast.Name)
        and parent.func.id in _QUESTIONS
    )


def _tf32(module: Module, statement: ast.stmt, node: ast.expr) -> Finding:
    """`torch.backends.cuda.matmul.allow_tf32 = value`, for one or both kinds of products."""
    said = "TF32 on CUDA is HF32 on an Ascend; on a CPU torch's flag is set as before."
    if isinstance(statement, ast.Assign):
        kinds = {_TF32.get(module.qualified(target) or "") for target in statement.targets}
        only = {"matmul": "conv=False", "conv": "matmul=False"}
        if None not in kinds:
            rest = [] if len(kinds) > 1 else [only[str(next(iter(kinds)))]]
            parts = module.target.call("allow_tf32", statement.value, *rest)
            if parts is None and not module.vendor.words:
                return module.keep(statement, "ACC081", "A flag of torch's, which CUDA heeds.")
            if parts is not None:
                return module.convert(statement, "ACC081", said, *parts, subject="allow_tf32")
    return module.flag(
        node, "ACC081", "It lets float32 products be rounded to TF32, which is HF32 on an Ascend.",
        "Write accel.allow_tf32(...).", subject="allow_tf32",
    )  # fmt: skip


def _cudnn_attention(module: Module, node: ast.expr) -> Finding:
    parent = module.parent(node)
    if isinstance(parent, (ast.List, ast.Tuple, ast.Set)) and len(parent.elts) > 1:
        return module.keep(node, "ACC082", "One of several attention kernels that are allowed.")
    return module.flag(
        node, "ACC082", "It allows cuDNN's attention kernel alone.",
        "Allow SDPBackend.MATH beside it, or use accel.segmented_attention.", subject="sdpa_kernel",
    )  # fmt: skip


def _compile(module: Module, node: ast.expr) -> Finding:
    """torch.compile as a call, a decorator, or a value."""
    call = module.parent(node)
    named = None
    if isinstance(call, ast.Call) and call.func is node:
        mode = calls.argument(call, 4, "mode")
        named = module.constant(mode) if mode is not None else None
    more = " The mode's graphs are made on CUDA only." if named in _GRAPH_MODES else ""
    return module.keep(
        node, "ACC083", f"The compiler takes the device's own back end.{more}",
        subject="torch.compile",
    )  # fmt: skip

"""ACC090 to ACC096: operators and dtypes that the chip's tables rule out, and the like."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.module import Module
from accel.convert.rule import Rule, unchanged
from accel.convert.rules import operators_dtypes as dtypes
from accel.convert.rules import operators_formats as formats
from accel.convert.rules.operators_table import ELSEWHERE, METHODS, advice_for, substitute
from accel.convert.tables.operators import Row, Support, support

_TABLES = "The vendor's tables say what was verified on each chip, by PyTorch release."


RULES = (
    Rule(
        id="ACC090",
        name="operator-unsupported",
        title="Operators that the chip's tables list as unsupported",
        why="A model that needs an operator that a chip lacks cannot be moved as it is, and it is "
        "better to know that before the work begins than at its end.",
        ascend=_TABLES + " A cross means that the operator is listed as unsupported, not that it "
        "fails: try it. It is a blocker only where nothing is known to take its place. For the "
        "950DT a cross counts only where the other chips have one too, since its column lists "
        "little yet.",
        action="flag",
        effort="rewrite",
        examples=(*unchanged("import torch\n\nspread, middle = torch.std_mean(x)\n"),),
        kept=(
            "import torch\n\nspread = torch.std(x)\n",
            "import torch\nfrom torch import nn\n\n\ndef f(m: nn.RNN) -> None:\n    m.eval()\n",
            "import torch\nfrom torch import nn\n\nfound = isinstance(m, nn.RNN)\n",
            "import numpy as np\nimport torch\n\nx = np.heaviside(a, 0)\n",
            "import torch\n\n\nclass T:\n    def std_mean(self): ...\n\n\nT().std_mean()\n",
        ),
    ),
    Rule(
        id="ACC091",
        name="operator-dtype",
        title="Operators called with a dtype that their row leaves out",
        why="float64 and complex numbers work in fewer operators than other dtypes; only calls "
        "that show such a dtype themselves are looked at.",
        ascend=_TABLES,
        action="flag",
        effort="review",
        examples=(*unchanged("import torch\n\ny = torch.erfinv(x.double())\n"),),
        kept=(
            "import torch\n\ny = torch.erfinv(x)\n",
            "import torch\n\ny = torch.abs(x.cpu().double())\n",
        ),
    ),
    Rule(
        id="ACC092",
        name="float64",
        title="Tensors of float64 on the device",
        why="float64 is slow on most accelerators and missing from many operators on some.",
        ascend="`.double()` and `.to(torch.float64)` of a tensor on the device give float32 there, "
        "with one warning. A float64 tensor of the CPU that is moved keeps its dtype, and 27 % of "
        "the rows with a list of dtypes have float64 in it.",
        action="flag",
        effort="review",
        examples=(
            *unchanged("import torch\n\nt = torch.zeros(3, dtype=torch.float64, device=device)\n"),
        ),
        kept=(
            "import torch\n\nt = torch.zeros(3, dtype=torch.float64)\n",
            "import torch\n\nt = x.cpu().double()\n",
            "import torch\n\nt = torch.zeros(3, dtype=torch.float64, device='cpu')\n",
            "import numpy as np\nimport torch\n\nt = np.zeros(3, dtype=np.float64)\n",
        ),
    ),
    Rule(
        id="ACC093",
        name="complex",
        title="Complex numbers on the device",
        why="Complex dtypes are missing from many operators of some accelerators.",
        ascend="complex64 is in about a fifth of the rows that list dtypes.",
        action="flag",
        effort="review",
        examples=(
            *unchanged(
                "import torch\n\nt = torch.zeros(3, dtype=torch.complex64, device=device)\n"
            ),
        ),
        kept=("import torch\n\nt = torch.zeros(3, dtype=torch.complex64)\n",),
    ),
    Rule(
        id="ACC094",
        name="data-parallel",
        title="DataParallel, which drives several GPUs from one process",
        why="It drives several GPUs from one process, which is slow on CUDA and not there on other "
        "accelerators; on a CPU or one device it only calls the module.",
        ascend="Listed as unsupported on every chip.",
        action="flag",
        effort="review",
        examples=(*unchanged("import torch\n\nmodel = torch.nn.DataParallel(model)\n"),),
        kept=(
            "import torch\n\nfound = isinstance(model, torch.nn.DataParallel)\n",
            "import torch\n\nm = torch.nn.parallel.DistributedDataParallel(m)\n",
        ),
    ),
    Rule(
        id="ACC095",
        name="torchscript",
        title="TorchScript by torch.jit.script and torch.jit.trace",
        why="A traced module holds the devices that it was traced on as constants.",
        ascend="torch_npu's migration layer turns torch.jit.script off. Trace on the device where "
        "the module will run.",
        action="flag",
        effort="review",
        examples=(*unchanged("import torch\n\nmodel = torch.jit.trace(model, x)\n"),),
        kept=("import torch\n\n\n@torch.jit.ignore\ndef f(x):\n    return x\n",),
    ),
    *formats.RULES,
)

_SCRIPTING = {"torch.jit.script", "torch.jit.trace", "torch.jit.trace_module"}
# Calls that look at a class and make nothing of it.
_CHECKS = {
    "builtins.isinstance",
    "builtins.issubclass",
    "torch.serialization.add_safe_globals",
    "torch.serialization.safe_globals",
}
_PARALLEL = {"torch.nn.DataParallel", "torch.nn.parallel.DataParallel"}
_RECIPE = (
    "Start one process a device (torchrun --nproc_per_node=N), call init_process_group("
    "accel.dist_backend('nccl')), wrap with DistributedDataParallel(model, "
    "device_ids=accel.ddp_device_ids(rank)), and give the loader a DistributedSampler."
)


def find(module: Module) -> Iterator[Finding]:
    """Operators and dtypes, for the chip of the run."""
    if module.options.source != "cuda" or b"torch" not in module.source.utf8:
        return
    table = support(module.options.chip)
    for node in module.all(ast.Attribute, ast.Name):
        # An alias is spoken of where it is made.
        if not isinstance(module.parent(node), ast.Attribute) and _is_named(module, node):
            yield from _reference(module, table, node)
    spoken = set()
    for call in module.all(ast.Call):
        for finding in _call(module, table, call):
            if finding.span not in spoken:
                yield finding
            spoken.add(finding.span)
            if finding.rule == "ACC091":
                spoken.add(module.span(call.args[0]))


def _is_named(module: Module, node: ast.expr) -> bool:
    if not isinstance(node, ast.Name):
        return True
    binding = module.binding(node)
    return binding is not None and bool(binding.imports)


# --- operators ---------------------------------------------------------------------------------


def _reference(module: Module, table: Support, node: ast.expr) -> Iterator[Finding]:
    name = module.qualified(node) or ""
    if not name.startswith("torch.") or not _is_used(module, node):
        return
    yield from formats.reference(module, node, name)
    if name in _PARALLEL or name.endswith(".data_parallel"):
        yield module.flag(
            node, "ACC094", "DataParallel drives several CUDA devices from one process", _RECIPE,
            effort="rewrite", subject="torch.nn.DataParallel",
        )  # fmt: skip
    elif name in _SCRIPTING:
        yield module.flag(
            node, "ACC095", f"{name} fixes devices in what it makes",
            "Run the module as it is, or under torch.compile; where TorchScript must be, make it "
            "on the device that runs it.",
            subject=name,
        )  # fmt: skip
    elif not name.startswith(ELSEWHERE):
        row = _unsupported(table, name)
        if row is not None:
            yield _listed(module, node, row)


def _unsupported(table: Support, name: str) -> Row | None:
    """The row that speaks against an interface: its own, or that of the module's `forward`."""
    for api in (name, f"{name}.forward"):
        row = table.look_up(api)
        if row is not None and row.status == "unsupported":
            return row
    return None


def _listed(module: Module, node: ast.expr, row: Row) -> Finding:
    api = row.api.removesuffix(".forward")
    known = substitute(api)
    said = row.describe() + ("" if known else "; nothing is known to take its place")
    return module.flag(
        node, "ACC090", said, advice_for(api), effort="rewrite", blocker=not known, subject=api
    )


def _checks(module: Module, call: ast.Call) -> bool:
    return (module.qualified(call.func) or "") in _CHECKS


def _is_used(module: Module, node: ast.expr) -> bool:
    """Whether a name is called, subclassed or handed on: not in a type or a check for one."""
    if not isinstance(getattr(node, "ctx", None), ast.Load):
        return False
    child: ast.AST = node
    for outer in module.ancestors(node):
        if isinstance(outer, ast.Call) and child is not outer.func and _checks(module, outer):
            return False
        if isinstance(outer, ast.arg) or (
            isinstance(outer, ast.AnnAssign) and child is outer.annotation
        ):
            return False
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)) and child is outer.returns:
            return False
        if isinstance(outer, ast.stmt):
            return True
        child = outer
    return True


# --- calls -------------------------------------------------------------------------------------


def _call(module: Module, table: Support, call: ast.Call) -> Iterator[Finding]:
    function = call.func
    if (
        isinstance(function, ast.Attribute)
        and function.attr in METHODS
        and dtypes.is_tensor_method(module, function)
    ):
        row = _unsupported(table, f"torch.Tensor.{function.attr}")
        if row is not None:
            yield _listed(module, call, row)
    name = module.qualified(function) or ""
    if name.startswith("torch.") and call.args and not name.startswith(ELSEWHERE):
        dtype = dtypes.shown(module, call.args[0])
        if dtype and not _is_on_host(module, call.args[0]) and _left_out(table, name, dtype):
            row = table.look_up(name)
            yield module.flag(
                call, "ACC091", f"{row.describe() if row else name}; {dtype} is not among them",
                f"Compute it in float32, or on the CPU. {_HOW[dtype]}", subject=name,
            )  # fmt: skip
            return
    yield from _wide(module, call, name)


def _left_out(table: Support, name: str, dtype: str) -> bool:
    """Whether a row leaves a dtype out and no other row of the operator has it.

    The rows of functions, methods and modules differ by what was tested.
    """
    leaf = name.rpartition(".")[2]
    rows = {name, f"torch.{leaf}", f"torch.Tensor.{leaf}", f"torch.nn.functional.{leaf}"}
    said = [row.accepts(dtype) for row in map(table.look_up, rows) if row is not None]
    own = table.look_up(name)
    return own is not None and own.accepts(dtype) is False and True not in said


def _is_on_host(module: Module, node: ast.expr) -> bool:
    node = module.value_of(node)
    return isinstance(node, ast.Call) and not dtypes.on_device(module, node)


_HOW = {
    "float64": "On Ascend a tensor of the device that is cast to float64 becomes float32.",
    "complex64": "Real and imaginary parts as two float32 tensors work everywhere.",
    "complex128": "Real and imaginary parts as two float32 tensors work everywhere.",
    "complex32": "Real and imaginary parts as two float32 tensors work everywhere.",
}


def _wide(module: Module, call: ast.Call, name: str) -> Iterator[Finding]:
    if name == "torch.set_default_dtype" and call.args:
        dtype = dtypes.dtype_of(module, call.args[0])
        if dtype:
            yield _flag_dtype(module, call, dtype, "becomes the dtype of all new tensors")
        return
    dtype = dtypes.shown(module, call)
    if dtype is None or not dtypes.on_device(module, call):
        return
    function = call.func
    if (
        isinstance(function, ast.Attribute)
        and function.attr in dtypes.METHODS
        and (not dtypes.is_tensor_method(module, function) or "double" in module.project.names)
    ):
        return
    yield _flag_dtype(module, call, dtype, "may be on the device here")


def _flag_dtype(module: Module, call: ast.Call, dtype: str, what: str) -> Finding:
    rule = "ACC092" if dtype == "float64" else "ACC093"
    return module.flag(
        call, rule, f"{dtype} {what}", f"Use float32 unless the digits are needed. {_HOW[dtype]}",
        subject=dtype,
    )  # fmt: skip

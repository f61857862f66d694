"""The rules about vendors' own packages, as data."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

_FORMULA = (
    "Write it in torch's own operators, or keep it behind a test of the device's type beside a "
    "formula that other devices can compute."
)
# By the operator's name; "" is the rest.
OPERATORS = {
    "npu_fusion_attention": "Use torch.nn.functional.scaled_dot_product_attention, or "
    "accel.segmented_attention, which take this operator on Ascend themselves.",
    "npu_rms_norm": "Use torch.nn.functional.rms_norm.",
    "npu_swiglu": "Split the tensor in two and write torch.nn.functional.silu(a) * b.",
    "npu_rotary_mul": "Write the rotation: x * cos + rotated(x) * sin.",
    "npu_format_cast": "Leave it out: the layout is Ascend's own affair.",
    "npu_linear": "Use torch.nn.functional.linear.",
    "fast_gelu": "Use torch.nn.functional.gelu(x, approximate='tanh').",
    "npu_confusion_transpose": "Write reshape and permute.",
    "npu_dtype_cast": "Use tensor.to(dtype).",
    "npu_scaled_masked_softmax": "Write masked_fill and softmax.",
    "": _FORMULA,
}
# By what follows the package's name; the last is the rest.
OTHERS = (
    ("optim", "Use the optimizer of the same name in torch.optim."),
    ("profiler", "Use torch.profiler.profile(activities=accel.profiler_activities())."),
    ("contrib", "Use the layer of torch.nn that it stands for."),
    ("utils", "Leave it out where it tunes Ascend alone; " + _FORMULA),
    ("", "Keep it behind a test of the device's type; " + _FORMULA),
)

_T = "import torch\n"

RULES = (
    Rule(
        id="ACC150",
        name="vendor-import",
        title="The import of a vendor's package",
        why="An unconditional import of torch_npu, torch_musa or torch_mlu stops the program where "
        "the package is missing. Once nothing uses it, it goes: accel loads what the device needs.",
        ascend="accel imports torch_npu itself where it is installed.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before=_T + "import torch_npu\n\ntorch.npu.synchronize()\n",
                after=_T + "import accel\n\naccel.synchronize()\n",
            ),
            Example(
                before=_T + "import torch_mlu\n\nx = torch.ones(2).mlu()\n",
                after=_T + "import accel\n\nx = torch.ones(2).to(accel.device())\n",
            ),
        ),
        kept=("import torch_npu\n", "import torch_npu_tools\n\ntorch_npu_tools.run()\n"),
    ),
    Rule(
        id="ACC151",
        name="vendor-shim",
        title="The shim that redirects torch.cuda while the program runs",
        why="transfer_to_npu replaces functions of torch for the whole process, and the word cuda "
        "in any string argument, paths and host names included. A converted program needs none.",
        ascend="Convert from CUDA first, then take it out.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before=_T + "from torch_npu.contrib import transfer_to_npu\n",
                after=_T + "from torch_npu.contrib import transfer_to_npu\n",
            ),
        ),
        kept=("def transfer_to_npu(x):\n    return x\n\n\ntransfer_to_npu(1)\n",),
    ),
    Rule(
        id="ACC152",
        name="vendor-operator",
        title="Operators that only a vendor's package has",
        why="torch_npu.npu_* are fused operators of Ascend. Other devices have other ones, or the "
        "formula in torch's own operators.",
        ascend="The fused operator may be faster there; accel's attention takes it by itself.",
        action="flag",
        effort="rewrite",
        examples=(
            Example(
                before=_T + "import torch_npu\n\ny = torch_npu.npu_rms_norm(x, w)\n",
                after=_T + "import torch_npu\n\ny = torch_npu.npu_rms_norm(x, w)\n",
            ),
        ),
        kept=("def npu_rms_norm(x):\n    return x\n\n\nnpu_rms_norm(1)\n",),
    ),
    Rule(
        id="ACC153",
        name="vendor-package",
        title="Other parts of a vendor's package",
        why="Optimizers, profilers and settings of a vendor's package have no counterpart of the "
        "same name for other devices.",
        ascend="torch's own optimizers and profiler work there too.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before=_T + "import torch_npu\n\noptimizer = torch_npu.optim.NpuFusedAdamW(p)\n",
                after=_T + "import torch_npu\n\noptimizer = torch_npu.optim.NpuFusedAdamW(p)\n",
            ),
        ),
        kept=("import optim_npu\n\noptim_npu.run()\n",),
    ),
)

"""The rules ACC100 to ACC109 as data."""

from __future__ import annotations

from accel.convert.rule import Example, Rule, unchanged

RULES = (
    Rule(
        id="ACC100",
        name="package",
        title="Packages that are bound to CUDA",
        why="What they compute runs on NVIDIA devices only; many have a counterpart elsewhere.",
        ascend="The table names what runs there, with versions and where it is from. An import "
        "whose ImportError the program catches is kept.",
        action="flag",
        effort="review",
        examples=unchanged("import torch\nfrom flash_attn import flash_attn_func\n"),
        kept=(
            "try:\n    import apex\nexcept ImportError:\n    apex = None\n",
            "import deepspeed\n",
            "from . import apex\n",
            "import kernels\n\nkernels.run()\n",
        ),
    ),
    Rule(
        id="ACC101",
        name="package-use",
        title="Names of such a package",
        why="They go with the import, which says what to do.",
        ascend="Nothing more than the import says.",
        action="keep",
        effort="auto",
        examples=unchanged("import apex\n\nmodel = apex.parallel.convert_syncbn_model(model)\n"),
    ),
    Rule(
        id="ACC102",
        name="cuda-extension",
        title="CUDA code that is built with torch.utils.cpp_extension",
        why="A CUDA kernel runs on NVIDIA devices only. The functions that use it are listed, and "
        "functions of the file that look like a plain version of it. It is no blocker where every "
        "use stands under a guard with a plain path beside it, or where its import is optional; "
        "its sources are told with it.",
        ascend="torch_npu.utils.cpp_extension.NpuExtension builds C++ for Ascend; "
        "torch.utils.cpp_extension.load is listed as unsupported.",
        action="flag",
        effort="rewrite",
        examples=unchanged(
            "from torch.utils.cpp_extension import load\n\n"
            "kernels = load(name='kernels', sources=['kernels.cu'])\n"
        ),
        kept=(
            "def load(name, sources):\n    return name\n\n\nx = load(name='a', sources=['a.cu'])\n",
        ),
    ),
    Rule(
        id="ACC103",
        name="compiled-module",
        title="Compiled modules of a project's own",
        why="An import that no Python file of the tree answers, under a name such as `_ext` or "
        "`nms_cuda`, is an extension, which is often built from CUDA sources. Names with CUDA in "
        "them are looked for where a tree is converted, not in a file on its own. Calls of its "
        "functions go with the import.",
        ascend="The sources need another build, or a plain torch version in their place.",
        action="flag",
        effort="rewrite",
        examples=unchanged(
            "import torch\n\nfrom . import _C\n\n\ndef nms(x):\n    return _C.nms(x)\n"
        ),
        kept=("from . import nms_cuda\n", "import math_cuda\n"),
    ),
    Rule(
        id="ACC104",
        name="cuda-library",
        title="Libraries of CUDA that are loaded by ctypes",
        why="They are not there on other platforms, so that the program ends when it starts.",
        ascend="torch has the like of most functions of the CUDA runtime.",
        action="flag",
        effort="rewrite",
        examples=unchanged("import ctypes\n\nruntime = ctypes.CDLL('libcudart.so')\n"),
        kept=("import ctypes\n\nlibrary = ctypes.CDLL('libm.so.6')\n",),
    ),
    Rule(
        id="ACC105",
        name="cuda-source",
        title="CUDA C++ in a string",
        why="It is compiled when the program runs, for NVIDIA devices only.",
        ascend="Write it with torch operators, in Triton (triton-ascend), or in Ascend C.",
        action="flag",
        effort="rewrite",
        examples=unchanged(
            "import torch\n\n"
            'SOURCE = """\n__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n"""\n'
        ),
        kept=('TEXT = "a __global__ function runs on the device"\n',),
    ),
    Rule(
        id="ACC106",
        name="nvidia-tool",
        title="NVIDIA's tools that a program runs",
        why="nvidia-smi and the like know NVIDIA devices only, and are not there elsewhere.",
        ascend="`npu-smi info` shows the like; torch has most of it as functions.",
        action="flag",
        effort="review",
        examples=unchanged("import subprocess\n\nsubprocess.run(['nvidia-smi', '-L'])\n"),
        kept=("import subprocess\n\nsubprocess.run(['git', 'log', '--grep=cuda'])\n",),
    ),
    Rule(
        id="ACC107",
        name="torch-version-cuda",
        title="Decisions by torch.version.cuda",
        why="It is None in builds without CUDA, whatever accelerator they have.",
        ascend="None; torch_npu.version names its own release.",
        action="flag",
        effort="review",
        examples=unchanged("import torch\n\nnew = torch.version.cuda >= '11.0'\n"),
        kept=("import torch\n\nprint(torch.version.cuda)\n",),
    ),
    Rule(
        id="ACC108",
        name="name-at-run-time",
        title="Names of torch.cuda in getattr, import_module and patches",
        why="A constant name is as good as the plain form, and is converted like it; a name that "
        "is known at run time only cannot be.",
        ascend="Nothing special.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ngetattr(torch.cuda, 'synchronize')()\n",
                after="import torch\nimport accel\n\naccel.synchronize()\n",
            ),
        ),
        kept=(
            "import torch\n\nold = not hasattr(torch.cuda, 'amp')\n",
            "cuda = getattr(args, 'cuda', False)\n",
            "import torch\n\nf = getattr(torch.cuda, name)\n",
        ),
    ),
    Rule(
        id="ACC109",
        name="code-in-a-string",
        title="Texts that name CUDA in exec and eval",
        why="Code in a string is not converted: what it means depends on where it runs.",
        ascend="Nothing special.",
        action="flag",
        effort="review",
        examples=unchanged("import torch\n\nexec('torch.cuda.synchronize()')\n"),
        kept=("value = eval('1 + 1')\n",),
    ),
)

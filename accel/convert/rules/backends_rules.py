"""What ACC080 to ACC085 are, with examples, for the documentation and the tests."""

from __future__ import annotations

from accel.convert.rule import Example, Rule, unchanged

RULES = (
    Rule(
        id="ACC080",
        name="cudnn-flags",
        title="Settings of cuDNN",
        why="torch accepts them without cuDNN, where they have no effect.",
        ascend="torch_npu accepts them.",
        action="keep",
        effort="auto",
        examples=(
            *unchanged("import torch\n\ntorch.backends.cudnn.benchmark = True\n"),
            *unchanged("import torch.backends.cudnn as cudnn\n\ncudnn.deterministic = True\n"),
        ),
        kept=(
            "from torch.backends import cudnn\n\ncudnn.enabled = False\nprint(cudnn.version())\n",
            "import torch\n\nwith torch.backends.cudnn.flags(enabled=False):\n    f()\n",
            "import torch\n\nprint(torch.backends.cudnn.is_available())\n",
            "import torch\n\nif hasattr(torch.backends.cudnn, 'benchmark_limit'):\n    pass\n",
        ),
    ),
    Rule(
        id="ACC081",
        name="tf32",
        title="TF32",
        why="The flags let CUDA round float32 products. accel.allow_tf32() sets them, and the same "
        "of an Ascend; on a CPU the numbers stay those that the flags gave.",
        ascend="HF32 has 11 bits of mantissa, TF32 has 10.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ntorch.backends.cuda.matmul.allow_tf32 = True\n"
                "torch.backends.cudnn.allow_tf32 = args.tf32\n",
                after="import torch\nimport accel\n\naccel.allow_tf32(True, conv=False)\n"
                "accel.allow_tf32(args.tf32, matmul=False)\n",
            ),
            Example(
                before="import torch\n\ntorch.backends.cuda.matmul.allow_tf32 = "
                "torch.backends.cudnn.allow_tf32 = False\n",
                after="import torch\nimport accel\n\naccel.allow_tf32(False)\n",
            ),
        ),
        kept=(
            "import torch\n\nwas = torch.backends.cuda.matmul.allow_tf32\n",
            "import torch\n\ntorch.backends.cudnn.allow_tf32, x = True, 1\n",
            "import torch\n\ntorch.set_float32_matmul_precision('high')\n",
            "import torch\n\ntorch.backends.cuda.matmul.fp32_precision = 'tf32'\n",
            "class backends:\n    pass\n\nbackends.cuda.matmul.allow_tf32 = True\n",
            "config.allow_tf32 = True\n",
        ),
    ),
    Rule(
        id="ACC082",
        name="sdpa-kernels",
        title="Choice of attention kernels",
        why="torch.backends.cuda's switches choose among CUDA's kernels; other devices have their "
        "own. sdp_kernel is deprecated.",
        ascend="torch_npu calls its own fused attention.",
        action="flag",
        effort="review",
        examples=(
            *unchanged(
                "import torch\n\nwith torch.backends.cuda.sdp_kernel(enable_flash=True):\n    f()\n"
            ),
        ),
        kept=(
            "import torch\n\ntorch.backends.cuda.enable_flash_sdp(False)\n",
            "import torch\n\nprint(torch.backends.cuda.flash_sdp_enabled())\n",
            "from torch.nn.attention import SDPBackend, sdpa_kernel\n\n"
            "with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):\n    f()\n",
            "from torch.nn.attention import SDPBackend, sdpa_kernel\n\n"
            "with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]):\n    f()\n",
        ),
    ),
    Rule(
        id="ACC083",
        name="torch-compile",
        title="Uses of torch.compile",
        why="The compiler has a back end for each device.",
        ascend="torch_npu brings its own; some modes have no effect.",
        action="keep",
        effort="review",
        examples=(*unchanged("import torch\n\nf = torch.compile(f, mode='reduce-overhead')\n"),),
        kept=(
            "import torch\n\n@torch.compile\ndef f(x):\n    return x\n",
            "import torch\n\nf = torch.compile(f, options={'triton.cudagraphs': True})\n",
            "import torch\n\nf = torch.compile(f, mode='max-autotune-no-cudagraphs')\n",
            "import torch\nimport torch._inductor.config\n\n"
            "torch._inductor.config.triton.cudagraphs = True\n",
            "import torch\n\ntorch.compiler.cudagraph_mark_step_begin()\n",
            "import re\n\nre.compile('cuda')\n",
        ),
    ),
    Rule(
        id="ACC084",
        name="cuda-backend",
        title="Other settings of torch.backends.cuda",
        why="They are about CUDA's libraries. Those of matrix products are accepted without CUDA; "
        "others raise.",
        ascend="Nothing.",
        action="flag",
        effort="review",
        examples=(*unchanged("import torch\n\nif torch.backends.cuda.is_built():\n    f()\n"),),
        kept=(
            "import torch\n\n"
            "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False\n",
            "import torch\n\ntorch.backends.cuda.cufft_plan_cache.max_size = 8\n",
            "import torch\n\ntorch.backends.cuda.preferred_linalg_library('cusolver')\n",
            "import torch\n\nprint(hasattr(torch.backends.cuda, 'sdp_kernel'))\n",
            "import torch\n\ntorch.backends.mps.is_built()\n",
        ),
    ),
    Rule(
        id="ACC085",
        name="has-triton",
        title="Tests for Triton",
        why="They are false where Triton cannot run.",
        ascend="triton-ascend.",
        action="keep",
        effort="auto",
        examples=(
            *unchanged("from torch.utils._triton import has_triton\n\nif has_triton():\n    f()\n"),
        ),
        kept=("def has_triton():\n    return False\n\nhas_triton()\n",),
    ),
)

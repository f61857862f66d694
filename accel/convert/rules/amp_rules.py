"""What ACC040 to ACC044 are, with examples, for the documentation and the tests."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

RULES = (
    Rule(
        id="ACC040",
        name="torch-cuda-amp",
        title="Autocast, GradScaler and the decorators of torch.cuda.amp",
        why="torch.cuda.amp is CUDA's. What takes its place follows the device that is here, and "
        "on a CPU stays disabled as torch.cuda.amp was there, so that the numbers are the same. "
        "Where the file also casts to another type, float16, which was the default, is written.",
        ascend="float16 by default, as on CUDA; the scaler also asks the overflow flag of chips "
        "that saturate.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nscaler = torch.cuda.amp.GradScaler(enabled=fp16)\n"
                "with torch.cuda.amp.autocast(dtype=torch.float16):\n    loss = model(x)\n",
                after="import torch\nimport accel\n\nscaler = accel.GradScaler(enabled=fp16)\n"
                "with accel.autocast(dtype=torch.float16):\n    loss = model(x)\n",
            ),
            Example(
                before="import torch.cuda.amp as amp\n\n"
                "with amp.autocast():\n    loss = model(x)\n",
                after="import accel\n\nwith accel.autocast():\n    loss = model(x)\n",
            ),
            Example(
                before="import torch\n\nwith torch.autocast('cuda', dtype=torch.bfloat16):\n"
                "    with torch.cuda.amp.autocast():\n        loss = model(x)\n",
                after="import torch\nimport accel\n\nwith accel.autocast(dtype=torch.bfloat16):\n"
                "    with accel.autocast(dtype=torch.float16):\n        loss = model(x)\n",
            ),
            Example(
                before="import torch\nfrom torch.cuda import amp\n\n@amp.custom_fwd\n"
                "def forward(x):\n    return x\n",
                after="import torch\nimport accel\n\n@accel.custom_fwd\n"
                "def forward(x):\n    return x\n",
            ),
        ),
        kept=(
            "import torch\n\nclass Patched(torch.cuda.amp.autocast):\n    pass\n",
            "import torch\n\nprint(isinstance(x, torch.cuda.amp.autocast))\n",
            "import torch\n\nwith torch.cpu.amp.autocast():\n    step()\n",
            "from trainer.cuda import amp\n\nwith amp.autocast():\n    step()\n",
            "from mylib import autocast\n\nwith autocast():\n    step()\n",
        ),
    ),
    Rule(
        id="ACC041",
        name="amp-for-cuda",
        title="Calls of torch.autocast and torch.amp with the device type cuda",
        why="torch.autocast('cuda') is disabled without CUDA, torch.autocast('cpu') computes in "
        "bfloat16; GradScaler() is CUDA's too. accel.autocast and accel.GradScaler take no device "
        "and stay disabled on a CPU.",
        ascend="As torch.autocast('npu').",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\n"
                "with torch.autocast(device_type='cuda', dtype=torch.bfloat16):\n"
                "    loss = model(x)\n",
                after="import torch\nimport accel\n\n"
                "with accel.autocast(dtype=torch.bfloat16):\n    loss = model(x)\n",
            ),
            Example(
                before="import torch\n\n"
                "with torch.autocast('cuda', torch.float16, use_amp):\n    loss = model(x)\n",
                after="import torch\nimport accel\n\n"
                "with accel.autocast(dtype=torch.float16, enabled=use_amp):\n    loss = model(x)\n",
            ),
            Example(
                before="from torch.amp import GradScaler, autocast\n\nscaler = GradScaler('cuda')\n"
                "with autocast('cuda'):\n    loss = model(x)\n",
                after="from accel import GradScaler, autocast\n\nscaler = GradScaler()\n"
                "with autocast():\n    loss = model(x)\n",
            ),
            Example(
                before="import torch\n\n@torch.amp.custom_bwd(device_type='cuda')\n"
                "def backward(ctx, g):\n    return g\n",
                after="import torch\nimport accel\n\n@accel.custom_bwd\n"
                "def backward(ctx, g):\n    return g\n",
            ),
            Example(
                before="import functools\n\nimport torch\n\n"
                "fwd = functools.partial(torch.amp.custom_fwd, device_type='cuda')\n",
                after="import functools\n\nimport torch\nimport accel\n\n"
                "fwd = functools.partial(accel.custom_fwd)\n",
            ),
        ),
        kept=(
            "import torch\n\nwith torch.autocast('cpu', dtype=torch.bfloat16):\n    step()\n",
            "import torch\n\nwith torch.autocast(device_type='xpu'):\n    step()\n",
            "import torch\n\nscaler = torch.amp.GradScaler('cpu')\n",
            "import torch\n\nwith torch.autocast(**options):\n    step()\n",
            "from contextlib import nullcontext as autocast\n\nwith autocast('cuda'):\n    pass\n",
            "def autocast(device_type):\n    return device_type\n",
        ),
    ),
    Rule(
        id="ACC042",
        name="amp-for-a-variable",
        title="Calls of torch.autocast with a device type that the program finds out",
        why="torch.autocast(device_type=kind) works for every device if kind is right. If kind may "
        "be a text that is converted, the block was off without CUDA, and would be on for cpu: "
        "that is for a human, unless the program asks before.",
        ascend="As torch.autocast('npu').",
        action="keep",
        effort="review",
        examples=(
            Example(
                before="import torch\n\ndef run(device_type):\n"
                "    with torch.autocast(device_type=device_type):\n        step()\n",
                after="import torch\n\ndef run(device_type):\n"
                "    with torch.autocast(device_type=device_type):\n        step()\n",
            ),
        ),
        kept=(
            "import torch\n\ndef run(device):\n"
            "    with torch.autocast(device.type):\n        step()\n",
            "import torch\n\ndef run(kind):\n    return torch.amp.GradScaler(kind)\n",
            "import torch\n\nkind = 'cpu'\nwith torch.autocast(kind, dtype=torch.bfloat16):\n"
            "    step()\n",
            "import torch\n\ndef run(x):\n    with torch.autocast(x.device.type):\n"
            "        return x @ x\n",
            "import torch\nfrom contextlib import nullcontext\n\ndef context(kind, dtype):\n"
            "    if kind == 'cpu':\n        return nullcontext()\n"
            "    return torch.amp.autocast(device_type=kind, dtype=dtype)\n",
        ),
    ),
    Rule(
        id="ACC043",
        name="apex-amp",
        title="Mixed precision by apex.amp",
        why="apex is compiled for CUDA. Torch's own mixed precision does the same on every device.",
        ascend="Ascend's own build of apex exists; torch's amp needs none.",
        action="flag",
        effort="rewrite",
        examples=(
            Example(
                before="from apex import amp\n\n"
                "model, optimizer = amp.initialize(model, optimizer, opt_level='O1')\n",
                after="from apex import amp\n\n"
                "model, optimizer = amp.initialize(model, optimizer, opt_level='O1')\n",
            ),
        ),
        kept=(
            "try:\n    from apex import amp\nexcept ImportError:\n    amp = None\n\n"
            "with amp.scale_loss(loss, optimizer) as scaled:\n    scaled.backward()\n",
            "from audio import amp\n\namp.initialize(gain=2)\n",
        ),
    ),
    Rule(
        id="ACC044",
        name="autocast-questions",
        title="Questions about CUDA's autocast",
        why="Without a device type, torch.is_autocast_enabled() and its like are about CUDA's "
        "autocast, whatever device computes.",
        ascend="torch.is_autocast_enabled('npu') is Ascend's.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nif torch.is_autocast_enabled():\n"
                "    x = x.to(torch.get_autocast_gpu_dtype())\n",
                after="import torch\n\nif torch.is_autocast_enabled():\n"
                "    x = x.to(torch.get_autocast_gpu_dtype())\n",
            ),
        ),
        kept=(
            "import torch\n\nprint(torch.is_autocast_enabled('cpu'))\n",
            "import torch\n\ntorch.set_autocast_enabled('cpu', True)\n",
        ),
    ),
)

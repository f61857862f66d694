"""What ACC073 to ACC079 are, with examples, for the documentation and the tests."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

RULES = (
    Rule(
        id="ACC073",
        name="device-rng",
        title="Random states of devices",
        why="torch.cuda's are CUDA's. The functions here are about the devices of the family that "
        "is here, and leave a CPU's own random state alone, as torch.cuda's did.",
        ascend="A state of CUDA's is refused there: random streams differ between chips.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ntorch.cuda.manual_seed_all(seed)\n"
                "states = torch.cuda.get_rng_state_all()\n",
                after="import torch\nimport accel\n\naccel.manual_seed_all(seed)\n"
                "states = accel.get_rng_state_all()\n",
            ),
            Example(
                before="import torch\nfrom torch.cuda import random as gpu_random\n\n"
                "gpu_random.manual_seed(1)\n",
                after="import torch\nimport accel\n\naccel.manual_seed(1)\n",
            ),
        ),
        kept=(
            "import torch\n\ntorch.manual_seed(0)\ntorch.get_rng_state()\n",
            "import random\n\nrandom.seed(0)\n",
            "import numpy as np\n\nnp.random.seed(0)\n",
            "import cupy\n\ncupy.random.seed(0)\n",
        ),
    ),
    Rule(
        id="ACC074",
        name="fork-rng",
        title="Blocks of torch.random.fork_rng",
        why="Without a device type it is about CUDA's random states in older versions of torch, "
        "and raises on a CPU if devices are named.",
        ascend="The NPU's random states.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nwith torch.random.fork_rng(devices=[0]):\n    f()\n",
                after="import torch\nimport accel\n\nwith accel.fork_rng(devices=[0]):\n    f()\n",
            ),
            Example(
                before="import torch\n\n"
                "with torch.random.fork_rng([0], device_type='cuda'):\n    f()\n",
                after="import torch\nimport accel\n\nwith accel.fork_rng([0]):\n    f()\n",
            ),
        ),
        kept=(
            "import torch\n\nwith torch.random.fork_rng([], device_type='cpu'):\n    f()\n",
            "import torch\n\nwith torch.random.fork_rng(**options):\n    f()\n",
            "from mylib import fork_rng\n\nwith fork_rng(devices=[0]):\n    f()\n",
        ),
    ),
    Rule(
        id="ACC075",
        name="generator",
        title="Generators of CUDA's",
        why="accel.generator() is one of the device that is here.",
        ascend="Its numbers differ from CUDA's for the same seed.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ng = torch.Generator(device='cuda').manual_seed(0)\n",
                after="import torch\nimport accel\n\ng = accel.generator().manual_seed(0)\n",
            ),
            Example(
                before="import torch\n\ng = torch.Generator('cuda:1')\n",
                after="import torch\nimport accel\n\ng = accel.generator(1)\n",
            ),
        ),
        kept=(
            "import torch\n\ng = torch.Generator()\n",
            "import torch\n\ng = torch.Generator('cpu')\n",
            "import torch\n\ndef f(device):\n    return torch.Generator(device=device)\n",
            "from typing import Generator\n\ndef f() -> Generator[int, None, None]:\n    yield 1\n",
        ),
    ),
    Rule(
        id="ACC076",
        name="default-generators",
        title="Default generators of devices",
        why="accel.default_generators() are those of the devices that are here; none on a CPU.",
        ascend="torch_npu's.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ng = torch.cuda.default_generators[0]\n",
                after="import torch\nimport accel\n\ng = accel.default_generators()[0]\n",
            ),
        ),
        kept=("import torch\n\ng = torch.default_generator\n",),
    ),
    Rule(
        id="ACC077",
        name="pin-memory",
        title="Page-locked tensors: tensor.pin_memory()",
        why="It raises where there is no accelerator. accel.pin_memory(tensor) returns the tensor "
        "there.",
        ascend="The tensor's own pin_memory.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nx = torch.from_numpy(a).pin_memory()\n",
                after="import torch\nimport accel\n\nx = accel.pin_memory(torch.from_numpy(a))\n",
            ),
        ),
        kept=(
            "import torch\n\nclass Batch:\n    def f(self):\n        return self.pin_memory()\n",
            "import torch\n\nclass B(A):\n    def pin_memory(self):\n"
            "        return super().pin_memory()\n",
            "import numpy\n\nbuffer.pin_memory()\n",
            "import torch\n\nallocator.pin_memory(4096, True)\n",
            "import torch\n\nclass Batch:\n    def pin_memory(self):\n        return self\n\n"
            "b = Batch().pin_memory()\n",
            "import torch\n\nclass Batch:\n    def pin_memory(self):\n        return self\n\n"
            "def f(batch):\n    return batch.pin_memory()\n",
        ),
    ),
    Rule(
        id="ACC078",
        name="pin-memory-option",
        title="Page-locked memory: pin_memory=True",
        why="A DataLoader locks pages only where there is an accelerator. A function that makes a "
        "tensor raises instead, so it is told whether there is one.",
        ascend="Works as on CUDA.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nx = torch.empty(3, pin_memory=True)\n",
                after="import torch\nimport accel\n\n"
                "x = torch.empty(3, pin_memory=accel.is_available())\n",
            ),
        ),
        kept=(
            "from torch.utils.data import DataLoader\n\nloader = DataLoader(d, pin_memory=True)\n",
            "import torch\n\nx = torch.empty(3, pin_memory=False)\n",
            "import torch\n\nx = torch.empty(3, pin_memory=pinned)\n",
            "import torch\n\nx = make(3, pin_memory=True)\n",
        ),
    ),
    Rule(
        id="ACC079",
        name="pin-memory-device",
        title="Loaders with pin_memory_device",
        why="The device that is here is the loader's default; the argument is deprecated.",
        ascend="The same.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="from torch.utils.data import DataLoader\n\n"
                "loader = DataLoader(d, pin_memory=True, pin_memory_device='cuda')\n",
                after="from torch.utils.data import DataLoader\n\n"
                "loader = DataLoader(d, pin_memory=True)\n",
            ),
        ),
        kept=(
            "from torch.utils.data import DataLoader\n\n"
            "loader = DataLoader(d, pin_memory_device=place.name)\n",
            "from torch.utils.data import DataLoader\n\n"
            "loader = DataLoader(d, pin_memory_device='')\n",
        ),
    ),
)

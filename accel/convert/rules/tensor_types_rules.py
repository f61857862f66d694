"""What ACC045 to ACC049 are, with examples, for the documentation and the tests."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

RULES = (
    Rule(
        id="ACC045",
        name="torch-cuda-tensor-class",
        title="Tensor classes of torch.cuda",
        why="torch.cuda.FloatTensor and its like exist for CUDA. accel.tensor_type(torch.float32) "
        "is the class of the device that is here: a constructor from sizes or data, an argument of "
        "tensor.type() and of isinstance.",
        ascend="torch.npu.FloatTensor; float64 is slow or missing there.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\n"
                "Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor\n",
                after="import torch\nimport accel\n\n"
                "Tensor = accel.tensor_type(torch.float32) if cuda else torch.FloatTensor\n",
            ),
            Example(
                before="import torch\n\nx = torch.cuda.LongTensor([1, 2]).type("
                "torch.cuda.FloatTensor)\n",
                after="import torch\nimport accel\n\nx = accel.tensor_type(torch.int64)([1, 2])"
                ".type(accel.tensor_type(torch.float32))\n",
            ),
            Example(
                before="import torch\nfrom torch.cuda import FloatTensor\n\nx = FloatTensor(3)\n",
                after="import torch\nimport accel\n\nx = accel.tensor_type(torch.float32)(3)\n",
            ),
            Example(
                before="import torch\n\ndef f(x: torch.cuda.FloatTensor) -> None:\n    pass\n",
                after="import torch\n\ndef f(x: torch.Tensor) -> None:\n    pass\n",
            ),
        ),
        kept=(
            "import torch\n\nx = torch.FloatTensor(3)\n",
            "import torch\n\nTensor = torch.HalfTensor\n",
            "import cuda\n\nx = cuda.FloatTensor(3)\n",
            "import torch\n\nclass Images(torch.cuda.FloatTensor):\n    pass\n",
            "def f(torch):\n    return torch.cuda.FloatTensor(3)\n",
            "from mylib.cuda import FloatTensor\n\nx = FloatTensor(3)\n",
            "FloatTensor = object\nx = FloatTensor()\n",
        ),
    ),
    Rule(
        id="ACC046",
        name="tensor-class-name",
        title="Names of CUDA's tensor classes in strings",
        why="tensor.type() returns 'torch.cuda.FloatTensor' on CUDA only. A comparison also asks "
        "where the tensor is, since on a CPU the names would be equal and CUDA's never were.",
        ascend="tensor.type() returns 'torch.npu.FloatTensor'.",
        action="convert",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nx = x.type('torch.cuda.HalfTensor')\n",
                after="import torch\nimport accel\n\n"
                "x = x.type(accel.tensor_type_name(torch.float16))\n",
            ),
            Example(
                before="import torch\n\nif x.type() == 'torch.cuda.HalfTensor':\n    cast(x)\n",
                after="import torch\nimport accel\n\n"
                "if x.type() == accel.tensor_type_name(torch.float16) "
                "and accel.on_accelerator(x):\n    cast(x)\n",
            ),
            Example(
                before="import torch\n\nok = not x.type() != 'torch.cuda.FloatTensor'\n",
                after="import torch\nimport accel\n\n"
                "ok = not (x.type() != accel.tensor_type_name(torch.float32) "
                "or not accel.on_accelerator(x))\n",
            ),
            Example(
                before="import torch\n\n"
                "kinds = ['torch.cuda.HalfTensor', 'torch.cuda.FloatTensor']\n"
                "split = {kind: [p for p in ps if p.type() == kind] for kind in kinds}\n",
                after="import torch\nimport accel\n\n"
                "kinds = [accel.tensor_type_name(torch.float16), "
                "accel.tensor_type_name(torch.float32)]\n"
                "split = {kind: [p for p in ps if p.type() == kind] for kind in kinds}\n",
            ),
            Example(
                before="import torch\n\n"
                "kind = 'torch.cuda.FloatTensor' if gpu else 'torch.FloatTensor'\n"
                "x = x.type(kind)\n",
                after="import torch\nimport accel\n\n"
                "kind = accel.tensor_type_name(torch.float32) if gpu else 'torch.FloatTensor'\n"
                "x = x.type(kind)\n",
            ),
        ),
        kept=(
            "import torch\n\nprint('torch.cuda.FloatTensor')\n",
            "import torch\n\nx = x.type('torch.FloatTensor')\n",
            "import torch\n\nnames = {'torch.FloatTensor': 0, 'torch.cuda.FloatTensor': 1}\n"
            "names[x.type()]\n",
            "import torch\n\nnames = ['torch.cuda.FloatTensor']\n",
            "import torch\n\nlog['kind'] == 'torch.cuda.FloatTensor'\n",
            "import torch\n\nf('a torch.cuda.FloatTensor')\n",
            "import torch\n\ndef f(kind='torch.cuda.FloatTensor'):\n    return kind\n",
            "import torch\n\nx.type('torch.cuda.NoTensor')\n",
            "import torch\n\ncolumn.type() == 'cuda'\n",
        ),
    ),
    Rule(
        id="ACC047",
        name="isinstance-of-a-tensor-class",
        title="Tests by isinstance with CUDA's tensor classes",
        why="It asks for the dtype and for the device at once. On a CPU the class is the CPU's, so "
        "the converted test also asks where the tensor is, and stays false there.",
        ascend="torch.npu.FloatTensor.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nif isinstance(x, torch.cuda.FloatTensor):\n    run(x)\n",
                after="import torch\nimport accel\n\n"
                "if isinstance(x, accel.tensor_type(torch.float32)) and accel.on_accelerator(x):\n"
                "    run(x)\n",
            ),
        ),
        kept=(
            "import torch\n\nisinstance(x, torch.FloatTensor)\n",
            "import torch\n\nisinstance(x, cuda.FloatTensor)\n",
        ),
    ),
    Rule(
        id="ACC048",
        name="default-tensor-type",
        title="A default tensor type of CUDA's",
        why="torch takes classes of CUDA and of the CPU only. set_default_dtype and "
        "set_default_device take any device, but leave torch.Tensor(...) on the CPU.",
        ascend="torch.set_default_tensor_type(torch.npu.FloatTensor) raises.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\ntorch.set_default_tensor_type(torch.cuda.FloatTensor)\n",
                after="import torch\n\ntorch.set_default_tensor_type(torch.cuda.FloatTensor)\n",
            ),
        ),
        kept=(
            "import torch\n\ntorch.set_default_tensor_type('torch.cuda.HalfTensor')\n",
            "import torch\n\ntorch.set_default_tensor_type('torch.FloatTensor')\n",
            "import torch\n\ntorch.set_default_tensor_type(torch.DoubleTensor)\n",
        ),
    ),
    Rule(
        id="ACC049",
        name="torch-cuda-storage",
        title="Storage classes of torch.cuda",
        why="They are CUDA's, and deprecated.",
        ascend="tensor.untyped_storage() works there.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nkinds = (torch.cuda.FloatStorage,)\n",
                after="import torch\n\nkinds = (torch.cuda.FloatStorage,)\n",
            ),
        ),
        kept=("import torch\n\ns = torch.FloatStorage(3)\n",),
    ),
)

"""What ACC020 to ACC029 are, with examples, for the documentation and the tests."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

RULES = (
    Rule(
        id="ACC020",
        name="torch-cuda-function",
        title="Functions of torch.cuda that every device has",
        why="torch.cuda's functions reach NVIDIA devices only. The functions of the same name here "
        "act on the device that is there, and on a CPU return what torch.cuda returns there.",
        ascend="They call torch_npu's own.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ntorch.cuda.empty_cache()\n",
                after="import torch\nimport accel\n\naccel.empty_cache()\n",
            ),
            Example(
                before="import torch\n\nsync = torch.cuda.synchronize\nsync()\n",
                after="import torch\nimport accel\n\nsync = accel.synchronize\nsync()\n",
            ),
            Example(
                before="import torch\n\nc = torch.cuda\nc.synchronize()\n",
                after="import torch\nimport accel\n\nc = torch.cuda\naccel.synchronize()\n",
            ),
            Example(
                before="import torch\n\nwith torch.cuda.device_of(x):\n    y = x + 1\n",
                after="import torch\nimport accel\n\nwith accel.device_of(x):\n    y = x + 1\n",
            ),
        ),
        kept=(
            "import torch\n\ndef f(torch):\n    torch.cuda.empty_cache()\n",
            "import torch\n\nclass Cluster:\n    cuda = None\n\nCluster.cuda.synchronize()\n",
            "cuda = make()\ncuda.synchronize()\n",
            "from helpers import cuda\n\ncuda.empty_cache()\n",
            "from .cuda import synchronize\n\nsynchronize()\n",
            "import numba.cuda\n\nnumba.cuda.synchronize()\n",
            "from numba import cuda\n\ncuda.synchronize()\ncuda.current_context()\n",
            "import torch\n\n# torch.cuda.synchronize()\n",
            'import torch\n\nprint("call torch.cuda.synchronize() first")\n',
            "def synchronize(cuda):\n    return cuda.synchronize\n",
            "import torch\n\ntorch.synchronize = 1\n",
            "import torch\n\ntorch.cpu.synchronize()\n",
            "import torch\n\nfor torch in backends:\n    torch.cuda.synchronize()\n",
            "import torch as th\n\nclass torch:\n    cuda = th\n\ntorch.cuda.synchronize()\n",
            "import torch\n\ndef f():\n    torch = load()\n    torch.cuda.empty_cache()\n",
        ),
    ),
    Rule(
        id="ACC021",
        name="torch-cuda-renamed",
        title="Functions of torch.cuda that have another name here",
        why="accel.current_device() and accel.device() are devices, so the index of the current "
        "one is current_device_index() and the block is device_index(). Deprecated names become "
        "those that replaced them.",
        ascend="They call torch_npu's own.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nprint(torch.cuda.current_device())\n",
                after="import torch\nimport accel\n\nprint(accel.current_device_index())\n",
            ),
            Example(
                before="import torch\n\nwith torch.cuda.device(1):\n    step()\n",
                after="import torch\nimport accel\n\nwith accel.device_index(1):\n    step()\n",
            ),
            Example(
                before="import torch\n\nx = torch.cuda.memory_cached()\n"
                "torch.cuda.reset_max_memory_allocated()\n",
                after="import torch\nimport accel\n\nx = accel.memory_reserved()\n"
                "accel.reset_peak_memory_stats()\n",
            ),
        ),
        kept=(
            'import torch\n\nd = torch.device("cpu")\n',
            "from mylib.cuda import current_device\n\ncurrent_device()\n",
            "import torch\n\ntorch.accelerator.current_device_index()\n",
            "def current_device(cuda):\n    return cuda.current_device()\n",
        ),
    ),
    Rule(
        id="ACC022",
        name="torch-cuda-import",
        title="Imports of names from torch.cuda",
        why="A name that is imported from torch.cuda is imported from here under the name that "
        "the file uses. An import of the module itself works without CUDA; it goes when nothing "
        "uses it.",
        ascend="Nothing.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="from torch.cuda import current_device, synchronize\n\nsynchronize()\n",
                after="from accel import current_device_index as current_device, synchronize\n\n"
                "synchronize()\n",
            ),
            Example(
                before="import torch\nimport torch.cuda as c\n\nc.synchronize()\n",
                after="import torch\nimport accel\n\naccel.synchronize()\n",
            ),
            Example(
                before="from torch import cuda, nn\n\ncuda.synchronize()\n",
                after="from torch import nn\nimport accel\n\naccel.synchronize()\n",
            ),
            Example(
                before="def f():\n    from torch.cuda.amp import (\n        autocast,  # casts\n"
                "        GradScaler,\n    )\n    return autocast, GradScaler\n",
                after="def f():\n    from accel import (\n        autocast,  # casts\n"
                "        GradScaler,\n    )\n    return autocast, GradScaler\n",
            ),
            Example(
                before="from torch.cuda import nccl, synchronize\n\n"
                "synchronize()\nnccl.version()\n",
                after="from accel import synchronize\nfrom torch.cuda import nccl\n\n"
                "synchronize()\nnccl.version()\n",
            ),
            Example(
                before="import torch.cuda\n\nprint(torch.__version__)\n",
                after="import torch.cuda\n\nprint(torch.__version__)\n",
            ),
        ),
        kept=(
            "import torch.cuda\n\nx = torch.zeros(3)\n",
            "import torch.cuda as c\n",
            "import torch.cuda as c\n\nprint(c)\n",
            "from cupy import cuda\n\ncuda.Device(0).use()\n",
            "from . import cuda\n\ncuda.synchronize()\n",
            "import mytorch.cuda as c\n\nc.synchronize()\n",
            "from torch.cudax import synchronize\n\nsynchronize()\n",
        ),
    ),
    Rule(
        id="ACC023",
        name="torch-cuda-only",
        title="Names of torch.cuda that no other device has",
        why="They are parts of the CUDA runtime, of NVIDIA's tools, or private to torch.",
        ascend="torch_npu lacks most of them.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nprint(torch.cuda.get_arch_list())\n",
                after="import torch\n\nprint(torch.cuda.get_arch_list())\n",
            ),
            Example(
                before="import torch\n\ntorch.cuda._sleep(1000)\n",
                after="import torch\n\ntorch.cuda._sleep(1000)\n",
            ),
        ),
        kept=(
            "import torch\n\ntorch.cuda.cudart().cudaProfilerStart()\n",
            "import torch\n\ntorch.cuda.comm.broadcast(x, [0, 1])\n",
            "import torch\n\ntorch.cuda.nccl.version()\n",
            "import torch\n\ntorch.cuda.temperature()\n",
        ),
    ),
    Rule(
        id="ACC024",
        name="torch-cuda-star-import",
        title="Star imports from torch.cuda",
        why="Which of the file's names come from torch.cuda cannot be told from the file.",
        ascend="Nothing.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="from torch.cuda import *\n\nsynchronize()\n",
                after="from torch.cuda import *\n\nsynchronize()\n",
            ),
        ),
        kept=("from torch.cuda.amp import *\n\nwith autocast():\n    step()\n",),
    ),
    Rule(
        id="ACC025",
        name="torch-cuda-as-value",
        title="The module torch.cuda as a value",
        why="Where a local name stands for torch.cuda, its uses are converted. Where the module is "
        "passed on, what is used of it cannot be told; a test for CUDA that only decides on that "
        "stays with it.",
        ascend="torch.get_device_module() is the module of the device that is here.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nrun(torch.cuda)\n",
                after="import torch\n\nrun(torch.cuda)\n",
            ),
        ),
        kept=(
            "import torch\n\nbackend = torch.cuda if fast else torch.cpu\nbackend.synchronize()\n",
            "import torch\n\nclass A:\n    api = torch.cuda\n\n    def f(self):\n"
            "        self.api.synchronize()\n",
            "import torch\n\nreturned = [torch.cuda]\nreturned[0].synchronize()\n",
            "import torch\n\nT = torch.cuda if torch.cuda.is_available() else torch\n"
            "x = T.FloatTensor(2)\n",
            "import torch\n\nif not torch.cuda.is_available():\n    import torch as th\nelse:\n"
            "    import torch.cuda as th\nx = th.FloatTensor(2)\n",
        ),
    ),
    Rule(
        id="ACC026",
        name="torch-cuda-replaced",
        title="Names of torch.cuda that a program replaces",
        why="An assignment to torch.cuda.x changes what torch itself calls; the converted program "
        "calls another function.",
        ascend="Nothing.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\ntorch.cuda.is_available = lambda: False\n",
                after="import torch\n\ntorch.cuda.is_available = lambda: False\n",
            ),
        ),
        kept=("import torch\n\ndel torch.cuda.synchronize\n",),
    ),
    Rule(
        id="ACC027",
        name="torch-cuda-error",
        title="Out of memory",
        why="torch.cuda.OutOfMemoryError is torch.OutOfMemoryError, which every device raises.",
        ascend="torch_npu raises it too.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ntry:\n    step()\nexcept torch.cuda.OutOfMemoryError:\n"
                "    skip()\n",
                after="import torch\n\ntry:\n    step()\nexcept torch.OutOfMemoryError:\n"
                "    skip()\n",
            ),
            Example(
                before="from torch.cuda import OutOfMemoryError\n\nprint(OutOfMemoryError)\n",
                after="from torch import OutOfMemoryError\n\nprint(OutOfMemoryError)\n",
            ),
        ),
        kept=(
            "import torch\n\ntry:\n    step()\nexcept torch.OutOfMemoryError:\n    skip()\n",
            "from errors import OutOfMemoryError\n\nprint(OutOfMemoryError)\n",
        ),
    ),
    Rule(
        id="ACC028",
        name="cuda-asked-by-try",
        title="A call that fails without CUDA as a question",
        why="Where a program catches the error of torch.cuda.current_device() and its like, the "
        "handler is its branch for machines without CUDA. The call that would take its place "
        "answers on every device, so a CPU would take the other branch. It stays.",
        ascend="The call raises there as on a CPU, until it is written as accel.is_available().",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\ntry:\n    torch.cuda.current_device()\n    has_gpu = True\n"
                "except (RuntimeError, AssertionError):\n    has_gpu = False\n",
                after="import torch\n\ntry:\n    torch.cuda.current_device()\n    has_gpu = True\n"
                "except (RuntimeError, AssertionError):\n    has_gpu = False\n",
            ),
        ),
        kept=(
            "import torch\n\ndef memory():\n    try:\n"
            "        return torch.cuda.get_device_properties(0).total_memory\n"
            "    except Exception:\n        return None\n",
            "import contextlib\nimport torch\n\nname = None\nwith contextlib.suppress(Exception):\n"
            "    name = torch.cuda.get_device_name()\n",
            "import pytest\nimport torch\n\nwith pytest.raises(AssertionError):\n"
            "    torch.cuda.init()\n",
            "import torch.cuda as c\n\ntry:\n    c.init()\nexcept Exception:\n    c = None\n",
        ),
    ),
)

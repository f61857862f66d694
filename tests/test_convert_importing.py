"""Where the output's imports go, and what this library is called there."""

import ast

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.project import index


def convert(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    again = convert_source(result.after, "program.py", Options(**options))
    assert again.after == result.after
    return result


def text(program: str, **options) -> str:
    return convert(program, **options).after.decode()


# --- imports -----------------------------------------------------------------------------------

IMPORTS = {
    "alone": (
        "import torch.cuda as c\n\nc.synchronize()\n",
        "import accel\n\naccel.synchronize()\n",
    ),
    "beside torch": (
        "import torch\nimport torch.cuda\n\ntorch.cuda.synchronize()\n",
        "import torch\nimport accel\n\naccel.synchronize()\n",
    ),
    "it alone binds torch": (
        "import torch.cuda\n\ntorch.cuda.synchronize()\ntorch.ones(2)\n",
        "import torch.cuda\nimport accel\n\naccel.synchronize()\ntorch.ones(2)\n",
    ),
    "torch is passed on": (
        "import torch\nimport torch.cuda\n\ntorch.cuda.synchronize()\nrun(torch)\n",
        "import torch\nimport accel\nimport torch.cuda\n\naccel.synchronize()\nrun(torch)\n",
    ),
    "the only statement of its block": (
        "try:\n    import torch.cuda as c\nexcept ImportError:\n    c = None\nc.synchronize()\n",
        "import accel\ntry:\n    import torch.cuda as c\nexcept ImportError:\n    c = None\n"
        "accel.synchronize()\n",
    ),
    "a comment stays": (
        "import torch\nimport torch.cuda as c  # why\n\nc.synchronize()\n",
        "import torch\nimport accel\nimport torch.cuda as c  # why\n\naccel.synchronize()\n",
    ),
    "several at once": (
        "import os, torch.cuda as c\n\nc.synchronize()\n",
        "import os, torch.cuda as c\nimport accel\n\naccel.synchronize()\n",
    ),
    "unused": ("import torch.cuda as c\n", "import torch.cuda as c\n"),
    "renamed twice": (
        "from torch.cuda import current_device as here\n\nhere()\n",
        "from accel import current_device_index as here\n\nhere()\n",
    ),
    "semicolons": (
        "import torch; from torch.cuda import nccl, synchronize; synchronize(); nccl.version()\n",
        "import torch; from accel import synchronize; from torch.cuda import nccl; synchronize(); "
        "nccl.version()\n",
    ),
    "the first of several goes": (
        "from torch import cuda, device, nn\n\ncuda.synchronize()\n",
        "from torch import device, nn\nimport accel\n\naccel.synchronize()\n",
    ),
    "the last of several goes": (
        "from torch import (\n    nn,\n    cuda,\n)\n\ncuda.synchronize()\n",
        "from torch import (\n    nn,\n)\nimport accel\n\naccel.synchronize()\n",
    ),
    "two homes": (
        "from torch.cuda import OutOfMemoryError, empty_cache\n\n"
        "print(OutOfMemoryError, empty_cache)\n",
        "from accel import empty_cache\nfrom torch import OutOfMemoryError\n\n"
        "print(OutOfMemoryError, empty_cache)\n",
    ),
    "a comment in the way": (
        "from torch.cuda import (\n    nccl,\n    synchronize,  # waits\n    graph,\n)\n",
        "from torch.cuda import (\n    nccl,\n    synchronize,  # waits\n    graph,\n)\n",
    ),
    "tensor classes need torch": (
        "from torch.cuda import FloatTensor\n\nx = FloatTensor(2)\n",
        "import accel\nimport torch\n\nx = accel.tensor_type(torch.float32)(2)\n",
    ),
    "torch by another name": (
        "import torch as th\n\nx = th.cuda.FloatTensor(2)\n",
        "import torch as th\nimport accel\n\nx = accel.tensor_type(th.float32)(2)\n",
    ),
    "a use that stays": (
        "from torch.cuda import synchronize\n\nsynchronize()  # accel: keep\n",
        "from torch.cuda import synchronize\n\nsynchronize()  # accel: keep\n",
    ),
    "a use of the module that stays": (
        "import torch\nimport torch.cuda as c\n\nc.synchronize()  # accel: keep\nc.init()\n",
        "import torch\nimport accel\nimport torch.cuda as c\n\n"
        "c.synchronize()  # accel: keep\naccel.init()\n",
    ),
    "behind the docstring": (
        '"""Doc."""\nfrom __future__ import annotations\n\ndef f():\n    import torch\n\n'
        "    torch.cuda.synchronize()\n",
        '"""Doc."""\nfrom __future__ import annotations\nimport accel\n\ndef f():\n'
        "    import torch\n\n    accel.synchronize()\n",
    ),
    "behind the leading imports": (
        "#!/usr/bin/env python\n# A licence.\nimport os\nimport sys\n\ntry:\n    import torch\n"
        "except ImportError:\n    torch = None\n\ntorch.cuda.synchronize()\n",
        "#!/usr/bin/env python\n# A licence.\nimport os\nimport sys\nimport accel\n\ntry:\n"
        "    import torch\nexcept ImportError:\n    torch = None\n\naccel.synchronize()\n",
    ),
    "before the first statement": (
        "# A licence.\n\ndef f():\n    import torch\n\n    torch.cuda.synchronize()\n",
        "# A licence.\n\nimport accel\ndef f():\n    import torch\n\n    accel.synchronize()\n",
    ),
    "the name accel is taken": (
        "import torch\n\naccel = 9.81\ntorch.cuda.synchronize()\n",
        "import torch\nimport accel as accel_torch\n\naccel = 9.81\naccel_torch.synchronize()\n",
    ),
    "windows line ends": (
        "import torch\r\nimport torch.cuda as c\r\n\r\nc.synchronize()\r\n",
        "import torch\r\nimport accel\r\n\r\naccel.synchronize()\r\n",
    ),
    "no line end at the end": (
        "import torch; torch.cuda.synchronize()",
        "import torch; import accel; accel.synchronize()",
    ),
    "no line end behind the import": (
        "def f():\n    torch.cuda.synchronize()\nimport torch  # late",
        "def f():\n    accel.synchronize()\nimport torch  # late\nimport accel",
    ),
    "a use on the line of the import": (
        "import torch; torch.cuda.synchronize(); print(1)\nprint(2)\n",
        "import torch; import accel; accel.synchronize(); print(1)\nprint(2)\n",
    ),
    "a statement of several lines behind the import": (
        "import torch; x = [\n    torch.cuda.device_count(),\n]\n",
        "import torch; import accel; x = [\n    accel.device_count(),\n]\n",
    ),
    "an import of several lines behind the import": (
        "import torch, torch.nn as nn;from torch.cuda.amp import (autocast,  # first\n"
        "    GradScaler,  # second\n)\ntorch.cuda.synchronize()\n",
        "import torch, torch.nn as nn;from accel import (autocast,  # first\n"
        "    GradScaler,  # second\n)\nimport accel\naccel.synchronize()\n",
    ),
    "a backslash behind the import": (
        "import torch; \\\ntorch.cuda.synchronize()\n",
        "import torch; import accel; \\\naccel.synchronize()\n",
    ),
    "nothing behind the semicolon": (
        "import torch;  # why\ntorch.cuda.synchronize()\n",
        "import torch;  # why\nimport accel\naccel.synchronize()\n",
    ),
    "a default before torch's import": (
        "import os\ndef f(device='cuda'):\n    return torch.device(device)\n"
        "import torch\nprint(torch.cuda.device_count())\n",
        "import os\nimport accel\ndef f(device=accel.default_device_type()):\n"
        "    return torch.device(device)\nimport torch\nprint(accel.device_count())\n",
    ),
    "a call before torch's import": (
        "import os\ndef f():\n    return dict(device='cuda')\nx = f()\nimport torch\n",
        "import os\nimport accel\ndef f():\n    return dict(device=accel.default_device_type())\n"
        "x = f()\nimport torch\n",
    ),
    "a decorator before torch's import": (
        "import os\n@run\ndef f():\n    return dict(device='cuda')\nimport torch\n",
        "import os\nimport accel\n@run\ndef f():\n"
        "    return dict(device=accel.default_device_type())\n"
        "import torch\n",
    ),
    "torch's import is too late": (
        "from torch.cuda import FloatTensor\nx = FloatTensor(2)\nimport torch\n",
        "import accel\nimport torch\nx = accel.tensor_type(torch.float32)(2)\nimport torch\n",
    ),
    "our own import is too late": (
        "import torch\ntorch.cuda.synchronize()\nimport accel\n",
        "import torch\nimport accel\naccel.synchronize()\nimport accel\n",
    ),
    "the line goes, and something before it needs ours": (
        "import os\nrun(device='cuda')\nimport torch.cuda as c\nc.synchronize()\n",
        "import os\nimport accel\nrun(device=accel.default_device_type())\naccel.synchronize()\n",
    ),
    "two in a row go": (
        "import torch\nimport torch.cuda as c\nimport torch.cuda.nvtx as n\n\n"
        "c.synchronize()\nn.range_pop()\n",
        "import torch\nimport accel\n\naccel.synchronize()\naccel.range_pop()\n",
    ),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_imports(name) -> None:
    before, after = IMPORTS[name]
    assert text(before) == after
    ast.parse(after)


# --- the library's name ------------------------------------------------------------------------

SYNC = "torch.cuda.synchronize()"
NAMES = {
    f"def f(accel):\n    {SYNC}\n": "accel_torch",
    f"def f(*accel):\n    pass\n{SYNC}\n": "accel_torch",
    "x = lambda accel: torch.cuda.synchronize()\n": "accel_torch",
    "x = [torch.cuda.synchronize() for accel in y]\n": "accel_torch",
    "class A:\n    accel = 1\n    x = torch.cuda.synchronize()\n": "accel_torch",
    f"def f():\n    accel = 1\n    {SYNC}\n": "accel_torch",
    f"from x import accel\n{SYNC}\n": "accel_torch",
    f"from . import accel\n{SYNC}\n": "accel_torch",
    f"import other as accel\n{SYNC}\n": "accel_torch",
    f"import accel\ndef f(accel):\n    {SYNC}\n": "accel_torch",
    f"import accel\naccel = accel.f\n{SYNC}\n": "accel_torch",
    f"from x import *\naccel.f()\n{SYNC}\n": "accel_torch",
    f"def f():\n    global accel\n    accel = 1\n{SYNC}\n": "accel_torch",
    f"def f():\n    {SYNC}\n    import accel\n": "accel_torch",
    f"match z:\n    case [accel]:\n        {SYNC}\n": "accel_torch",
    f"with f() as accel:\n    {SYNC}\n": "accel_torch",
    f"accel_torch = accel = 1\n{SYNC}\n": "accel_torch_",
    f"def f():\n    import accel\n    {SYNC}\n{SYNC}\n": "accel",
    f"self.accel = f(accel=1)\n{SYNC}\n": "accel",
    f"from x import *\n{SYNC}\n": "accel",
    f"try:\n    import accel\nexcept ImportError:\n    accel = None\n{SYNC}\n": "accel",
}


@pytest.mark.parametrize("program", NAMES)
def test_the_library_has_a_name_that_nothing_hides(program) -> None:
    name = NAMES[program]
    line = "import accel\n" if name == "accel" else f"import accel as {name}\n"
    after = text(f"import torch\n{program}")
    assert after.startswith(f"import torch\n{line}")
    assert after.count(f"{name}.synchronize()") == program.count(SYNC)


def test_a_star_import_of_a_file_with_the_library_s_name() -> None:
    files = {"a.py": b"import torch\nfrom b import *\ntorch.cuda.init()\n", "b.py": b"accel = 1\n"}
    result = convert_source(files["a.py"], "a.py", Options(), index(files))
    assert b"\naccel_torch.init()\n" in result.after

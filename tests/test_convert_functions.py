"""torch.cuda's names and their imports: that each is known, and what becomes of import lines."""

import ast

import pytest
import torch.cuda.amp
import torch.cuda.nvtx

import accel
from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.rules.functions_amp import GENERIC
from accel.convert.rules.functions_table import MODULES, TABLE, is_known, lookup

PUBLIC = sorted(
    {f"torch.cuda.{name}" for name in torch.cuda.__all__}
    | {f"torch.cuda.amp.{name}" for name in torch.cuda.amp.__all__}
    | {f"torch.cuda.nvtx.{name}" for name in torch.cuda.nvtx.__all__}
    | {f"torch.cuda.memory.{name}" for name in torch.cuda.memory.__all__}
    | {f"torch.cuda.random.{name}" for name in torch.cuda.random.__all__}
)


def convert(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    again = convert_source(result.after, "program.py", Options(**options))
    assert again.after == result.after
    return result


def text(program: str, **options) -> str:
    return convert(program, **options).after.decode()


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_known_and_becomes_or_says_something(name) -> None:
    assert is_known(name), name
    if name in MODULES:
        return
    result = convert(f"import torch\n\nx = {name}\n")
    actions = {f.action for f in result.findings if "torch.cuda" in f.snippet}
    if lookup(name).kind == "none":
        assert actions == {"flag"}
        assert all(f.advice for f in result.findings)
    else:
        assert actions == {"convert"}
        assert b"torch.cuda" not in result.after


def test_there_are_as_many_names_as_torch_has() -> None:
    assert len(torch.cuda.__all__) >= 125


def test_what_the_table_names_exists_here() -> None:
    ours = {known.function for known in TABLE.values() if known.kind not in ("none", "torch")}
    ours |= {generic.function for generic in GENERIC.values()}
    assert ours <= set(accel.__all__), ours - set(accel.__all__)
    theirs = {known.function for known in TABLE.values() if known.kind == "torch"}
    assert all(hasattr(torch, name) for name in theirs)


def test_tensor_classes_are_those_of_their_dtypes() -> None:
    for name, known in TABLE.items():
        if known.kind == "type":
            kind = name.rpartition(".")[2]
            assert getattr(torch, kind)(0).dtype is getattr(torch, known.dtype)


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
        "from torch.cuda import FloatTensor\nimport accel\nimport torch\n\n"
        "x = accel.tensor_type(torch.float32)(2)\n",
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
        "import accel\nimport torch; accel.synchronize()",
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


def test_an_import_with_a_comment_to_keep_it_has_its_uses_converted() -> None:
    program = "from torch.amp import autocast  # accel: keep\n\nautocast('cuda')\n"
    after = text(program)
    assert "from torch.amp import autocast  # accel: keep\n" in after
    assert "accel.autocast()\n" in after


@pytest.mark.parametrize(
    "program",
    [
        "import torch\nimport torch.cuda as c\n\n__all__ = ['c']\nc.synchronize()\n",
        "import torch\nfrom torch.cuda import amp\n\n__all__ = ['amp']\namp.GradScaler()\n",
        "from torch.amp import autocast\n\n__all__ = ['autocast']\nautocast('cuda')\n",
    ],
)
def test_what_other_files_may_import_stays(program) -> None:
    kept = [line for line in program.splitlines() if "import" in line]
    assert all(line in text(program) for line in kept)


def test_where_a_comment_is_in_the_way_the_uses_are_converted() -> None:
    program = (
        "from torch.amp import (\n    autocast,  # casts\n    is_autocast_available,\n)\n\n"
        "autocast('cuda')\nis_autocast_available('cuda')\n"
    )
    result = convert(program)
    after = result.after.decode()
    assert "    autocast,  # casts\n" in after
    assert "accel.autocast()\n" in after
    assert [f.line for f in result.findings if f.rule == "ACC022"] == [1]


def test_an_import_that_is_a_test_stays() -> None:
    program = (
        "try:\n    import torch.cuda.amp as amp\n    has = True\nexcept ImportError:\n"
        "    has = False\nif has:\n    s = amp.GradScaler()\n"
    )
    assert "    import torch.cuda.amp as amp\n" in text(program)


def test_names_that_torch_keeps_to_itself_are_flagged_at_their_uses() -> None:
    result = convert("from torch.cuda import _sleep\n\n_sleep(3)\n")
    assert [(f.line, f.action) for f in result.findings] == [(1, "keep"), (3, "flag")]


def test_a_rule_that_is_switched_off_keeps_names_and_imports() -> None:
    program = "from torch.cuda import synchronize\n\nsynchronize()\n"
    assert text(program, ignore=("ACC02",)) == program
    alias = "import torch\nimport torch.cuda as c\n\nc.synchronize()\n"
    assert text(alias, ignore=("ACC020",)) == alias
    both = "import torch\nimport torch.cuda as c\n\nc.synchronize()\nc.manual_seed(1)\n"
    assert "import torch.cuda as c\n" in text(both, ignore=("ACC020",))


def test_imports_of_another_target() -> None:
    program = "from torch.cuda import set_device, synchronize\n\nset_device(0)\nsynchronize()\n"
    after = text(program, target="torch")
    assert after.startswith(
        "from torch.accelerator import set_device_index as set_device, synchronize\n"
    )
    assert text(program, target="npu").startswith("from torch.npu import set_device, synchronize\n")


def test_a_guard_that_is_kept_keeps_its_import() -> None:
    program = (
        "import torch\nfrom torch.cuda import is_available\n\nif is_available():\n"
        "    net = torch.nn.DataParallel(net)\nprint(is_available())\n"
    )
    after = text(program)
    assert "from torch.cuda import is_available\n" in after
    assert "if is_available():" in after
    assert "print(accel.is_available())" in after


def test_what_hangs_on_a_name_is_flagged_with_it() -> None:
    result = convert("import torch\n\ntorch.cuda.cudart().cudaProfilerStart()\n")
    assert [f.action for f in result.findings] == ["flag"]
    assert {entry.rule for entry in result.ledger} == {"ACC023"}

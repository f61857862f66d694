"""What a file has of `torch.cuda` by way of another file of the tree: never kept as its own."""

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.project import Project, index
from accel.convert.reexports import Homes

COMPAT = "import torch\nfrom torch.cuda import FloatTensor, synchronize\ncuda = torch.cuda\n"


def results(**options):
    def convert(files: dict[str, str]):
        data = {path: text.encode() for path, text in files.items()}
        project = index(data)
        return {p: convert_source(d, p, Options(**options), project) for p, d in data.items()}

    return convert


def flagged(files: dict[str, str], path: str, **options) -> list[tuple[int, str]]:
    """The lines of a file with flags, and what is flagged; the file itself stays."""
    result = results(**options)(files)[path]
    assert result.error == ""
    assert not result.is_changed
    found = [f for f in result.findings if f.action == "flag"]
    assert all(f.advice and f.subject for f in found)
    return [(f.line, result.before[f.span.start : f.span.end].decode()) for f in found]


@pytest.mark.parametrize(
    ("start", "use"),
    [
        ("from compat import cuda", "cuda.synchronize"),
        ("from compat import cuda as c", "c.synchronize"),
        ("import compat", "compat.cuda.empty_cache"),
        ("import compat", "compat.torch.cuda.manual_seed"),
        ("import compat as k", "k.torch.cuda.amp.autocast"),
        ("from compat import torch as th", "th.cuda.Stream"),
        ("from compat import *", "torch.cuda.synchronize"),
        ("from compat import *", "cuda.synchronize"),
        ("from .compat import cuda", "cuda.synchronize"),
        ("from . import compat", "compat.cuda.synchronize"),
        ("from compat import FloatTensor", "FloatTensor"),
        ("from compat import cuda\nalias = cuda", "alias.synchronize"),
    ],
)
def test_what_another_file_passes_on_is_flagged_where_it_is_used(start, use) -> None:
    """Both files said that the other one judges it, and neither converted it."""
    files = {"pkg/compat.py": COMPAT, "pkg/train.py": f"{start}  # torch\n{use}(1)\n"}
    found = flagged(files, "pkg/train.py")
    assert [text for line, text in found if line > 1][-1] == use


def test_a_module_that_is_passed_on_again_is_flagged() -> None:
    files = {"compat.py": COMPAT, "a.py": "from compat import cuda\nrun(cuda)\n"}
    assert flagged(files, "a.py") == [(2, "cuda")]


def test_names_go_through_several_files() -> None:
    files = {
        "pkg/__init__.py": "from .core import cuda\n",
        "pkg/core.py": "from ._base import *\n",
        "pkg/_base.py": "try:\n    from torch import cuda\nexcept ImportError:\n    pass\n",
        "pkg/sub/a.py": "from .. import cuda as k\nk.synchronize()\n",
        "b.py": "import pkg\npkg.cuda.synchronize()\n",
        "c.py": "from pkg.core import cuda\ncuda.synchronize()\n",
    }
    assert flagged(files, "pkg/sub/a.py") == [(2, "k.synchronize")]
    assert flagged(files, "b.py") == [(2, "pkg.cuda.synchronize")]
    assert flagged(files, "c.py") == [(2, "cuda.synchronize")]


def test_a_function_that_is_converted_where_it_is_imported_is_not_flagged() -> None:
    files = {
        "compat.py": "from torch.cuda import synchronize\n",
        "a.py": "from compat import synchronize  # cuda\nsynchronize()\n",
    }
    assert results()(files)["compat.py"].after == b"from accel import synchronize\n"
    assert flagged(files, "a.py") == []


@pytest.mark.parametrize(
    ("compat", "use"),
    [
        ("cuda = 3\n", "from compat import cuda\nprint(cuda)"),
        ("class cuda:\n    size = 1\n", "from compat import cuda\ncuda.size"),
        ("import torch\n", "import compat\ncompat.torch.zeros(1)  # cuda"),
        ("import torch\n", "from compat import torch  # cuda\ntorch.zeros(1)"),
        ("import numpy as cuda\n", "from other import cuda_n\ncuda_n()"),
    ],
)
def test_what_is_not_torch_cuda_s_is_not_flagged_so(compat, use) -> None:
    files = {"compat.py": compat, "other.py": "def cuda_n(): ...\n", "a.py": f"{use}\n"}
    assert flagged(files, "a.py") == []


def test_a_name_that_tells_nothing_is_flagged_where_it_is_made() -> None:
    """Who imports it has no word of CUDA's, and is not even looked at."""
    files = {
        "compat.py": "import torch\nimport torch.cuda as tc\ndev = torch.cuda\nown = torch.cuda\n",
        "a.py": "from compat import dev, tc\ndev.synchronize()\ntc.synchronize()\n",
    }
    result = results()(files)["compat.py"]
    found = [f for f in result.findings if f.action == "flag"]
    assert [(f.line, f.message.split()[0]) for f in found] == [(2, "tc"), (3, "dev")]
    assert results()(files)["a.py"].findings == ()


def test_a_class_that_is_converted_where_it_is_assigned_is_not_flagged() -> None:
    files = {
        "compat.py": "import torch\nFT = torch.cuda.FloatTensor\n",
        "a.py": "from compat import FT  # cuda\nFT(3)\n",
    }
    assert results()(files)["compat.py"].is_changed
    assert flagged(files, "a.py") == []


def test_other_vendors_modules_are_followed_as_well() -> None:
    files = {
        "compat.py": "import torch\nimport torch_npu\nnpu = torch.npu\n",
        "a.py": "from compat import npu\nnpu.synchronize()\n",
    }
    assert flagged(files, "a.py", source="npu") == [(2, "npu.synchronize")]


def test_a_file_on_its_own_passes_nothing_on() -> None:
    assert Project().through("a.py", "compat.cuda.synchronize") is None


def test_a_name_of_two_files_means_neither_for_sure() -> None:
    homes = Homes({"x.utils": "x/utils.py", "y.utils": "y/utils.py", "z.one": "z/one.py"})
    assert homes.file("a.py", "utils") == ""
    assert homes.file("x/a.py", "utils") == "x/utils.py"
    assert homes.file("a.py", "one") == "z/one.py"
    assert homes.file("a.py", "x.utils") == "x/utils.py"
    assert homes.file("y/b/c.py", "..utils") == "y/utils.py"
    assert homes.file("y/b/c.py", ".utils") == ""
    assert homes.file("a.py", "...utils") == ""

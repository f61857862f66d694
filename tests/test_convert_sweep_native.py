"""Extensions over a tree: one subject for sources, builds and imports, and who needs them."""

from pathlib import Path

import pytest

from accel.convert.options import Options
from accel.convert.pages.summary import Summary, summarize
from accel.convert.tree import convert_tree

KERNEL = "#include <cuda.h>\n__global__ void twice_kernel(float* x) {}\n"
BINDING = (
    "#include <cuda_runtime.h>\nvoid twice_cuda(float* x);\n"
    'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("twice", &twice_cuda); cudaFree(0); }\n'
)
SETUP = (
    "from torch.utils.cpp_extension import CUDAExtension\n\n"
    "EXT = CUDAExtension('twice_cuda', sources=['twice.cpp', 'twice_kernel.cu'])\n"
)
NATIVE = {"csrc/twice.cpp": BINDING, "csrc/twice_kernel.cu": KERNEL}
USE = "\n\ndef twice(x):\n    return twice_cuda.twice(x)\n"
OPTIONAL = f"try:\n    import twice_cuda\nexcept ImportError:\n    twice_cuda = None\n{USE}"
NEEDED = f"import twice_cuda\n{USE}"


def summary(folder: Path, files: dict[str, str]) -> Summary:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return summarize(convert_tree([folder], Options()))


def blockers(found: Summary) -> dict[str, int]:
    return {group.subject: len(group.places) for group in found.blockers}


def test_one_extension_is_one_blocker_that_names_its_callers(tmp_path) -> None:
    found = summary(tmp_path, {**NATIVE, "setup.py": SETUP, "pkg/a.py": NEEDED})
    assert blockers(found) == {"twice_cuda": 4}
    (group,) = found.blockers
    assert [place.path for place in group.places] == [
        "csrc/twice.cpp", "csrc/twice_kernel.cu", "pkg/a.py", "setup.py",
    ]  # fmt: skip
    assert {"pkg/a.py:1", "pkg/a.py:5", "setup.py:3"} <= set(group.named_at)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        # Named in the file, and not in the call; found by the folder of the build script.
        ("from torch.utils.ffi import create_extension\nsources = ['twice.cpp']\n"
         "f = create_extension('_ext.t', sources=sources, with_cuda=True)", "_ext.t"),
        ("import glob\nfrom torch.utils.cpp_extension import CUDAExtension\n"
         "e = CUDAExtension('pkg._C', sources=glob.glob('csrc/*.cu'))", "pkg._C"),
    ],
)  # fmt: skip
def test_sources_that_the_call_does_not_name(build, name, tmp_path) -> None:
    found = summary(tmp_path, {**NATIVE, "csrc/twice_kernel.h": KERNEL, "setup.py": build + "\n"})
    assert blockers(found) == {name: 4}


CHOSEN = """
import glob
import torch
from torch.utils.cpp_extension import CppExtension, CUDAExtension

extension = CppExtension
if torch.cuda.is_available():
    extension = CUDAExtension
modules = [extension('pkg._C', glob.glob('csrc/*.c*'))]
"""


def test_the_kind_of_extension_that_a_script_chooses(tmp_path) -> None:
    files = {
        "setup.py": CHOSEN, "pkg/__init__.py": "", "csrc/other.cu": KERNEL.replace("twice", "f"),
        "pkg/a.py": "from pkg import _C\nimport torch\n\n\ndef twice(x):\n    return _C.twice(x)\n",
    }  # fmt: skip
    found = summary(tmp_path, {**NATIVE, **files})
    assert blockers(found) == {"pkg._C": 4}
    assert {"setup.py:9", "pkg/a.py:1"} & set(found.blockers[0].named_at) == {"pkg/a.py:1"}


def test_two_extensions_stay_two(tmp_path) -> None:
    second = SETUP.replace("twice", "thrice").splitlines()[-1].replace("EXT", "OTHER")
    files = {"a/thrice.cpp": BINDING, "a/thrice_kernel.cu": KERNEL, "unknown.cu": KERNEL}
    found = summary(tmp_path, {**NATIVE, **files, "setup.py": f"{SETUP}{second}\n"})
    assert blockers(found) == {
        "twice_cuda": 3, "thrice_cuda": 3, "CUDA kernel twice_kernel": 1,
    }  # fmt: skip


def test_an_optional_import_as_the_only_one_is_work(tmp_path) -> None:
    found = summary(tmp_path, {**NATIVE, "setup.py": SETUP, "pkg/a.py": OPTIONAL})
    assert blockers(found) == {}
    assert found.verdict == "go with work"
    said = (
        "the program starts without it, for its import is optional: pkg/a.py:2; it is used at "
        "pkg/a.py:8"
    )
    for group in (*found.packages, *found.elsewhere["cuda"], *found.elsewhere["c++"]):
        assert group.subject == "twice_cuda"
        assert [said in reason for reason in group.reasons] == [True]
        assert group.places[0].finding.effort == "rewrite"


@pytest.mark.parametrize(
    "more",
    [
        NEEDED,
        "if 1:\n    from pkg.lib import other, twice_cuda\n",
        "import importlib\n\nf = importlib.import_module('twice_cuda')\n",
        "from twice_cuda import twice\n",
    ],
)
def test_one_import_that_is_not_optional_blocks(more, tmp_path) -> None:
    files = {**NATIVE, "setup.py": SETUP, "pkg/a.py": OPTIONAL, "pkg/b.py": more}
    assert "twice_cuda" in blockers(summary(tmp_path, files))


def test_an_extension_that_nobody_imports_blocks(tmp_path) -> None:
    files = {**NATIVE, "setup.py": SETUP, "pkg/a.py": "import torch\n"}
    assert blockers(summary(tmp_path, files)) == {"twice_cuda": 3}


LOADER = """
import torch.utils.cpp_extension


def get_plugin(name, sources, **more):
    return torch.utils.cpp_extension.load(name=name, sources=sources, **more)
"""
PLUGIN = """
import loader

_plugin = None


def _init():
    global _plugin
    try:
        _plugin = loader.get_plugin(
            'twice_plugin', sources=['twice.cpp', 'twice_kernel.cu'], extra_cuda_cflags=['-O3']
        )
    except Exception:
        print('no kernels')
    return _plugin is not None


def _fast(x):
    return _plugin.twice(x)


def _ref(x):
    return x + x
"""
GUARDED = (
    "    if x.device.type == 'cuda' and _init():\n        return _fast(x)\n    return _ref(x)\n"
)


def test_a_guarded_plain_path_is_work_for_all_of_the_extension(tmp_path) -> None:
    plugin = f"{PLUGIN}\n\ndef twice(x):\n{GUARDED}"
    found = summary(tmp_path, {**NATIVE, "loader.py": LOADER, "plugin.py": plugin})
    assert blockers(found) == {}
    reasons = {group.subject: group.reasons[0] for group in found.packages}
    assert reasons["twice_plugin"].endswith(
        "the program runs without it, slower: line 29 goes on with _ref"
    )
    assert "what it builds is told where it is called: twice_plugin" in reasons["get_plugin"]
    (kernels,) = found.elsewhere["cuda"]
    assert kernels.reasons[0].endswith("the program runs without it: see plugin.py:10")


def test_without_the_guard_it_is_one_blocker_and_the_loader_none(tmp_path) -> None:
    plugin = f"{PLUGIN}\n\ndef twice(x):\n    _init()\n    return _fast(x)\n"
    found = summary(tmp_path, {**NATIVE, "loader.py": LOADER, "plugin.py": plugin})
    assert blockers(found) == {"twice_plugin": 3}


def test_a_loader_that_nobody_is_seen_to_call_blocks(tmp_path) -> None:
    assert blockers(summary(tmp_path, {"loader.py": LOADER})) == {"get_plugin": 1}


STUB = "from ._nms import lib as _lib\n\nfor symbol in dir(_lib):\n    locals()[symbol] = symbol\n"
FFI = (
    "from torch.utils.ffi import create_extension\n\nwith_cuda = True\n"
    "ffi = create_extension('_ext.nms', sources=['src/nms_cuda.c'], with_cuda=with_cuda,\n"
    "    extra_objects=['src/nms_kernel.cu.o'])\n"
)
CALL = "from ._ext import nms\n\n\ndef run(x):\n    nms.nms_cuda(x)\n    return x\n"


def test_calls_of_an_extension_with_files_that_a_build_wrote(tmp_path) -> None:
    files = {
        "lib/_ext/__init__.py": "", "lib/_ext/nms/__init__.py": STUB, "lib/build.py": FFI,
        "lib/src/nms_kernel.cu": KERNEL, "lib/run.py": CALL, "lib/__init__.py": "",
    }  # fmt: skip
    found = summary(tmp_path, files)
    assert blockers(found) == {"_ext.nms": 3}
    (group,) = found.blockers
    assert {"lib/run.py:1", "lib/run.py:5"} <= set(group.named_at)
    assert "used by run" in " ".join(group.reasons)
    tree = convert_tree([tmp_path], Options())
    (run,) = [file for file in tree.files if file.path == "lib/run.py"]
    assert [(one.rule, one.line) for one in run.findings] == [("ACC103", 1), ("ACC103", 5)]
    assert {entry.rule for entry in run.ledger} == {"ACC103"}


def test_a_package_of_that_name_with_code_is_no_extension(tmp_path) -> None:
    files = {
        "lib/_ext/__init__.py": "", "lib/_ext/nms.py": "def nms_cuda(x):\n    return x\n",
        "lib/run.py": CALL, "lib/__init__.py": "",
    }  # fmt: skip
    assert blockers(summary(tmp_path, files)) == {}

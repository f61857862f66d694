"""Words that name nothing of CUDA's are kept with a true reason; what is not proven is shown."""

import sys

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.project import index


def entries(program: str, word: str = "", files: dict[str, str] | None = None):
    """The ledger's entries of code, of lines that hold a word."""
    tree = {path: text.encode() for path, text in (files or {}).items()}
    project = index({**tree, "program.py": program.encode()})
    result = convert_source(program.encode(), "program.py", Options(), project)
    assert result.error == ""
    lines = program.splitlines()
    return [e for e in result.ledger if e.kind != "comment" and word in lines[e.line - 1]]


def said(program: str, word: str = "", files: dict[str, str] | None = None) -> set[tuple[str, str]]:
    return {(e.rule, e.action) for e in entries(program, word, files)}


@pytest.mark.parametrize(
    ("program", "rule"),
    [
        ("use_cuda = 1\n", "ACC141"),
        ("def f(cuda):\n    return cuda\n", "ACC141"),
        ("class CudaTimer: ...\n", "ACC141"),
        ("class A:\n    cuda = 1\n    def f(self):\n        return self.cuda\n", "ACC142"),
        ("def f(a):\n    a.use_cuda = 1\n", "ACC142"),
        ("'''cuda notes'''\n", "ACC144"),
        ("def f():\n    'on cuda:0'\n", "ACC144"),
        ("print('cuda now')\n", "ACC145"),
        ("raise ValueError('cuda_' + str(1))\n", "ACC145"),
        ("x = 'words about CUDA'\n", "ACC145"),
        ("x = 'found cuda tensor(s) here'\n", "ACC145"),
        ("match x:\n    case [*cuda_rest]:\n        pass\n", "ACC141"),
        ("match x:\n    case {**cuda_rest}:\n        pass\n", "ACC141"),
        (
            "def f(a):\n    match a:\n        case A(cuda_n=1):\n            a.cuda_n = 1\n",
            "ACC142",
        ),
        ("class A:\n    def __repr__(self):\n        return f'<cuda={self.n}>'\n", "ACC145"),
        ("d = dict(use_cuda=1)\n", "ACC146"),
        ("def f(d):\n    return d['use_cuda']\n", "ACC146"),
        ("x = '/a/cuda/b'\n", "ACC147"),
        ("x = 'tcp://cuda-node1:23456'\n", "ACC147"),
    ],
)
def test_what_is_proven_is_kept(program, rule) -> None:
    found = said(program)
    assert (rule, "keep") in found
    assert {action for _, action in found} == {"keep"}


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return x.cuda_handle\n",
        "f(impl='cuda')\n",
        "import trt\nr = trt.Runtime()\nprint(r.deserialize_cuda_engine)\n",
        "x = ['cuda']\n",
        "import os\nos.system('echo cuda')\n",
        "exec('use_cuda = 1')\n",
        "match x:\n    case Device(cuda=1):\n        pass\n",
        "x = 'y = x.cuda(); use(y)'\n",
        "x = 'run --with-cuda now'\n",
        "x = '#include <cuda.h> and more'\n",
        "import torch\nx = getattr(torch._C, '_cuda_init')\n",
        "import torch\nx = torch.__dict__['cuda_thing']\n",
        "nvcc_path = '/usr/local/cuda'\n",
        "sources = ['kernels/a_cuda.cu']\n",
        "from torch._inductor import cudagraph_trees\n",
        "import torch\nprint(torch.somewhere.cuda_thing)\n",
    ],
)
def test_what_is_not_proven_is_flagged_with_advice(program) -> None:
    found = [e for e in entries(program) if e.action == "flag"]
    assert found
    result = convert_source(program.encode(), "program.py", Options())
    assert all(f.advice for f in result.findings if f.action == "flag")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are new in Python 3.12")
def test_a_type_parameter_is_a_name_of_the_program_s_own() -> None:
    found = entries("def f[cuda_T](x: int) -> int: ...\n")
    assert [(e.rule, e.action) for e in found] == [("ACC141", "keep")]


def test_an_option_of_another_file_is_an_option_here() -> None:
    reader = "def main(args):\n    return args.cuda\n"
    options = "parser.add_argument('--cuda', action='store_true')\n"
    assert said(reader, "args.cuda") == {("ACC149", "flag")}
    assert said(reader, "args.cuda", {"options.py": options}) == {("ACC143", "keep")}


def test_a_key_of_the_configuration_of_another_file() -> None:
    reader = "from config import cfg\nif cfg.USE_CUDA_NMS:\n    pass\n"
    config = "class Config: ...\ncfg = Config()\ncfg.USE_CUDA_NMS = True\n"
    assert said(reader, "cfg.USE") == {("ACC149", "flag")}
    assert said(reader, "cfg.USE", {"config.py": config}) == {("ACC142", "keep")}


def test_an_attribute_of_torchs_stays_a_question_even_where_a_class_has_one_too() -> None:
    own = "class A:\n    def is_cuda_like(self): ...\n    def cuda_stream(self): ...\n"
    assert said("def f(s):\n    return s.is_cuda_like()\n", "s.is", {"a.py": own}) == {
        ("ACC142", "keep")
    }
    assert said("def f(s):\n    return s.cuda_stream()\n", "s.cuda", {"a.py": own}) == {
        ("ACC149", "flag")
    }


@pytest.mark.parametrize(
    ("program", "files", "action"),
    [
        ("from models.cuda_ops import run\n", {"models/cuda_ops.py": "def run(): ...\n"}, "keep"),
        ("from models.cuda_ops import run\n", {"models/other.py": ""}, "flag"),
        ("from models import cuda_ops\n", {"models/cuda_ops.py": ""}, "keep"),
        ("from models import cuda_ops\n", {"models/__init__.py": ""}, "flag"),
        ("import cuda_ops\n", {"cuda_ops.py": ""}, "keep"),
        ("import cuda_ops\n", {"src/cuda_ops.py": ""}, "keep"),
        ("import cuda_ops\n", {}, "flag"),
        ("from .cuda_ops import run\n", {"cuda_ops.py": ""}, "keep"),
        ("from ._ext import nms_cuda\n", {}, "flag"),
    ],
)
def test_a_module_is_the_programs_own_if_it_is_in_the_tree(program, files, action) -> None:
    assert {a for _, a in said(program, "", files)} == {action}


def test_a_compiled_function_behind_a_module_of_the_tree_is_flagged() -> None:
    program = "from ext import nms\nnms.nms_cuda(1)\n"
    files = {"ext/nms/__init__.py": "from ._nms import *\n"}
    assert ("ACC149", "flag") in said(program, "nms.nms_cuda", files)


def test_each_word_of_an_f_string_is_accounted_for_on_its_own() -> None:
    program = "def f(use_cuda, d):\n    print(f'cuda {use_cuda} {d[\"cuda_x\"]:>{use_cuda}}')\n"
    kinds = [(e.kind, e.action) for e in entries(program, "print")]
    assert kinds == [("string", "keep"), ("name", "keep"), ("string", "keep"), ("name", "keep")]


def test_the_reason_says_what_the_word_is() -> None:
    (entry,) = entries("def f(use_cuda): ...\n")
    assert entry.reason == "use_cuda is a parameter of this program's own function"
    (entry,) = entries("import os\nos.system('echo cuda')\n")
    assert "command" in entry.reason


def test_other_vendors_words_stand_alone() -> None:
    """`input` holds the letters npu."""
    for program in ("input('x')\n", "descending = 1\n", "cannot = 1\n", "scanner = 2\n"):
        result = convert_source(program.encode(), "a.py", Options(source="npu"))
        assert result.ledger == ()
    result = convert_source(b"x = NPUGraph()\ny = torch_npu\n", "a.py", Options(source="npu"))
    assert [e.token.lower() for e in result.ledger] == ["npu", "npu"]


_CATCH = "try:\n    run()\nexcept RuntimeError as e:\n    text = str(e)\n"


@pytest.mark.parametrize(
    "program",
    [
        _CATCH + "    if 'CUDA' in str(e): raise\n",
        _CATCH + "    if 'CUDA out of memory' in text: raise\n",
        _CATCH + "    if text.startswith('CUDA out of memory'): raise\n",
        _CATCH + "    if 'CUDNN_STATUS' in e.args[0]: raise\n",
        _CATCH + "    if str(e).lower().find('cuda kernel failed') >= 0: raise\n",
        "def f(e):\n    return any(t in e.args[0] for t in ['CUDA out of memory.'])\n",
    ],
)
def test_a_text_that_is_looked_for_in_an_error(program) -> None:
    """On an Ascend the message says NPU, and the branch would not be taken."""
    result = convert_source(program.encode(), "a.py", Options())
    (found,) = [f for f in result.findings if f.action == "flag"]
    assert "other words" in found.message
    assert "OutOfMemoryError" in found.advice


def test_a_message_that_the_program_raises_itself_is_for_people() -> None:
    program = _CATCH + "    raise RuntimeError('CUDA out of memory') from e\n"
    assert said(program, "raise") == {("ACC145", "keep")}


@pytest.mark.parametrize(
    ("program", "rule"),
    [
        ("d = tempfile.mkdtemp(prefix='runs_cuda_')", "ACC147"),
        ("d = tempfile.mkstemp('.cuda')", "ACC147"),
        ("d = tempfile.mkdtemp(dir='cuda_runs')", "ACC149"),
        ("load(ignore_layers=['cuda_buffer'])", "ACC146"),
        ("hps.ignore_layers = ['cuda_buffer']", "ACC146"),
        ("skip_keys = {'cuda_a', 'cuda_b'}", "ACC146"),
        ("load(ignore_backends=['cuda_ipc'])", "ACC149"),
        ("load(layers=['cuda_ipc'])", "ACC149"),
        ("self.register_buffer('cuda_rng', x)", "ACC142"),
        ("self.add_module('cuda_net', x)", "ACC142"),
        ("self.register('cuda_net', x)", "ACC149"),
        ("h = HParams(cudnn_enabled=True)", "ACC146"),
        ("print0('Warning: this needs CUDA, ignoring --fp8 here')", "ACC145"),
    ],
)
def test_names_that_a_program_gives(program, rule) -> None:
    action = "flag" if rule == "ACC149" else "keep"
    assert said(f"import tempfile\n{program}\n") == {(rule, action)}


def test_an_attribute_that_setattr_gives_is_one() -> None:
    program = "setattr(self, 'cuda_x', 1)\nf('cuda_x')\n"
    assert said(program, "f(") == {("ACC142", "keep")}


@pytest.mark.parametrize(("count", "action"), [(39, "flag"), (40, "keep")])
@pytest.mark.parametrize("table", ["[{}]", "({})", "dict.fromkeys([{}])"])
def test_a_long_table_of_names_is_a_vocabulary(count, action, table) -> None:
    entries = ", ".join(f"'cuda_name_{n}'" for n in range(count))
    program = f"x = {table.format(entries)}\n"
    assert {a for _, a in said(program)} == {action}
    pairs = ", ".join(f"('cudaName{n}', 'hipName{n}')" for n in range(count))
    program = f"x = {table.format(pairs)}\n"
    assert {a for _, a in said(program)} == {action}


def test_settings_are_no_table_however_many() -> None:
    entries = ", ".join(f"'key{n}': {n}" for n in range(60))
    program = f"x = {{{entries}, 'backend': 'cuda_ipc'}}\n"
    assert said(program, "x =") == {("ACC149", "flag")}


@pytest.mark.parametrize(
    "line",
    [
        "self.torch.cuda.empty_cache()",
        "get_torch().cuda.memory_allocated()",
        "pt.cuda.synchronize()",
        "pt.cuda.amp.autocast()",
        "with pt.cuda.device(0): pass",
        "call(pt.cuda.synchronize)",
        "isinstance(x, pt.cuda.FloatTensor)",
        "cuda.synchronize()",
        "self.cuda.synchronize()",
        "lib.cuda.memory.empty_cache()",
    ],
)
@pytest.mark.parametrize(
    "before",
    ["cuda = flag()", "parser.add_argument('--cuda', action='store_true')", "x.cuda = 1"],
)
def test_a_function_of_torch_cuda_is_not_kept_because_something_is_called_cuda(
    line, before
) -> None:
    program = f"import torch\n{before}\ndef f(self, pt, x, lib, cuda):\n    {line}\n"
    result = convert_source(program.encode(), "a.py", Options())
    found = [f for f in result.findings if f.line == 4]
    assert [f.action for f in found] == ["flag"]
    assert "torch.cuda." in found[0].message


@pytest.mark.parametrize(
    "line",
    [
        "print(args.cuda)",
        "args.cuda.split(',')",
        "print(cfg.cuda.device, cfg.cuda.memory)",
        "print(Local().cuda.stream)",
    ],
)
def test_settings_that_are_called_cuda_are_kept(line) -> None:
    program = f"args.cuda = cfg.cuda = 1\ndef f(args, cfg):\n    {line}\n"
    assert {a for _, a in said(program, line)} == {"keep"}


def test_an_object_that_the_file_itself_makes_is_no_module() -> None:
    program = (
        "class Timer:\n    def synchronize(self): ...\n\n\n"
        "class A:\n    def __init__(self):\n        self.cuda = Timer()\n\n"
        "    def f(self):\n        self.cuda.synchronize()\n\n\n"
        "cuda = Timer()\ncuda.synchronize()\n"
    )
    assert {a for _, a in said(program, "synchronize()")} == {"keep"}


@pytest.mark.parametrize(
    "line",
    [
        "with pytest.raises(RuntimeError, match='CUDA error: no device'): f()",
        "self.assertRaisesRegex(RuntimeError, 'wants a CUDA tensor', f)",
        "found = out == 'NVIDIA driver version'",
        "found = re.search('CUDA Version: (.*)', out)",
        "found = re.compile('some CUDA words')",
        "found = out.startswith('CUDA is not here')",
        "found = 'some CUDA words' in out",
        "found = out.split('CUDA Version is')",
        "found = out in ('NVIDIA A100', 'NVIDIA H100')",
    ],
)
def test_a_text_that_is_searched_for_is_not_for_people(line) -> None:
    assert said(f"import re\n{line}\n") == {("ACC149", "flag")}


@pytest.mark.parametrize(
    "text",
    [
        "\\ndevice: cuda\\namp: true\\n",
        "[train]\\ndevice = cuda:0\\n",
        '{\\n  "device": "cuda",\\n  "n": 1\\n}',
        "- backend: nccl  # fast\\n- n: 1",
    ],
)
def test_a_configuration_in_a_text_is_not_for_people(text) -> None:
    assert said(f"cfg = load('{text}')\n") == {("ACC149", "flag")}
    assert said(f"print('{text}')\n") == {("ACC145", "keep")}


@pytest.mark.parametrize(
    "other",
    [
        "class Config:\n    use_cudnn: bool\n",
        "class Config:\n    class inner:\n        use_cudnn = 1\n",
        "Config = namedtuple('Config', ['n', 'use_cudnn'])\n",
        "Config = collections.namedtuple('Config', 'n, use_cudnn')\n",
        "Config = NamedTuple('Config', [('n', int), ('use_cudnn', bool)])\n",
    ],
)
@pytest.mark.parametrize("use", ["print(config.use_cudnn)", "Config(use_cudnn=1)"])
def test_fields_of_another_file_s_classes_are_attributes(other, use) -> None:
    (rule,) = said(use + "\n", "", {"config.py": other})
    assert rule[1] == "keep"
    assert said(use + "\n", "") == {("ACC149", "flag")}


@pytest.mark.parametrize("root", ["", "torch/"])
def test_torch_s_own_folder_is_known(root) -> None:
    """Its names are the tree's, whether the folder itself is given or what it is in."""
    names = ("nn/functional", "autograd/grad_mode", "cuda/graphs", "_tensor_str", "a/cuda_x")
    files = {f"{root}{name}.py": "" for name in names}
    program = "from torch.a import cuda_x\nimport torch\ntorch.cudnn_affine(1)\n"
    assert {a for _, a in said(program, "", files)} == {"keep"}
    assert {a for _, a in said(program, "", {"a.py": ""})} == {"flag"}


def test_nvidia_s_package_is_not_a_folder_of_the_tree() -> None:
    program = "import cuda.bindings\nprint(cuda.bindings.run.cudaDone, cuda.ops.Done.cudaDone)\n"
    files = {"lib/cuda/ops.py": "class Done:\n    cudaDone = 1\n"}
    reasons = {(e.reason.split()[0], e.action) for e in entries(program, "print", files)}
    assert ("cuda.bindings.run.cudaDone", "flag") in reasons
    assert ("cudaDone", "keep") in reasons

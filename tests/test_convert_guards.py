"""Conditions: which ask for any accelerator, and which for CUDA."""

import ast

import pytest

from accel.convert.engine import convert_source
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.rules import guards
from accel.convert.source import Source


def convert(program: str):
    result = convert_source(program.encode(), "program.py", Options())
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    ast.parse(result.after)
    again = convert_source(result.after, "program.py", Options())
    assert again.after == result.after
    return result


LINES = {
    "a = device.type == 'cuda'": "a = accel.is_accelerator(device)",
    "a = 'cuda' == device.type": "a = accel.is_accelerator(device)",
    "a = x.device.type != 'cuda'": "a = not accel.is_accelerator(x.device)",
    "a = not (device.type != 'cuda')": "a = not ((not accel.is_accelerator(device)))",
    "a = x.device.type == torch.device('cuda').type": "a = accel.is_accelerator(x.device)",
    "a = 'cuda' in str(device)": "a = accel.is_accelerator(device)",
    "a = 'cuda' not in device": "a = not accel.is_accelerator(device)",
    "a = device.startswith('cuda')": "a = accel.is_accelerator(device)",
    "a = device.startswith('cuda:')": 'a = accel.is_accelerator(device) and ":" in device',
    "a = 'cuda:' not in str(device)": (
        'a = not (accel.is_accelerator(device) and ":" in str(device))'
    ),
    "a = b or 'cuda:' in device": 'a = b or (accel.is_accelerator(device) and ":" in device)',
    "a = device_type == 'cuda' and b": "a = accel.is_accelerator(device_type) and b",
    "a = device.type in ('cuda',)": "a = accel.is_accelerator(device)",
    "device_type = cfg.get('t')\na = device_type == 'cuda'": (
        "a = accel.is_accelerator(str(device_type))"
    ),
    "kind = getattr(d, 'type', None)\na = kind == 'cuda'": "a = accel.is_accelerator(str(kind))",
    "a = getattr(d, 'type') != 'cuda'": "a = not accel.is_accelerator(getattr(d, 'type'))",
    "d = 'cuda' if ok else 'cpu'\na = d == 'cuda'": "a = accel.is_accelerator(d)",
    "p.add_argument('--device', choices=['cpu', 'cuda'])\na = args.device == 'cuda'": (
        "a = accel.is_accelerator(str(args.device))"
    ),
    "a = device.type not in {'cuda'}": "a = not accel.is_accelerator(device)",
    "a = b.is_cuda and c": "a = accel.on_accelerator(b) and c",
    "a = [t.is_cuda for t in ts]": "a = [accel.on_accelerator(t) for t in ts]",
    "a = (b + c).is_cuda": "a = accel.on_accelerator(b + c)",
    "a = f(x.cuda().is_cuda)": "a = f(accel.on_accelerator(x.to(accel.device())))",
}


@pytest.mark.parametrize(("before", "wanted"), LINES.items())
def test_lines(before, wanted) -> None:
    result = convert(f"import torch\n{before}\n")
    assert result.after.decode().splitlines()[-1] == wanted


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("return'cuda'in device", "return accel.is_accelerator(device)"),
        ("return(device.type)!='cuda'", "return not accel.is_accelerator(device)"),
        ("return 3 if'cuda'in device else 4", "return 3 if accel.is_accelerator(device) else 4"),
        ("return not'cuda'==device.type", "return not accel.is_accelerator(device)"),
        ("return(a+b).is_cuda", "return accel.on_accelerator(a+b)"),
        (
            "return x.to('cpu'if a else'cuda')",
            "return x.to('cpu'if a else accel.default_device_type())",
        ),
    ],
)
def test_words_stay_apart(before, wanted) -> None:
    result = convert(f"import torch\n\ndef f(x, a, b, device):\n    {before}\n")
    assert result.after.decode().splitlines()[-1].strip() == wanted


def test_a_device_that_may_be_none_is_no_accelerator() -> None:
    """`None == "cuda"` is False, and must not become an error."""
    program = "import torch\n\ndef f(device_type=None):\n    return device_type == 'cuda'\n"
    assert "accel.is_accelerator(str(device_type))" in convert(program).after.decode()


def test_the_other_branch_is_taken_where_only_cuda_can_go() -> None:
    program = (
        "import torch\n\ndef wrap(model, device):\n    if device.type == 'cuda':\n"
        "        model = torch.nn.DataParallel(model).cuda()\n    else:\n"
        "        model.to(device)\n    return model\n"
    )
    result = convert(program)
    assert b"if device.type == 'cuda':" in result.after
    assert [f.line for f in result.findings if f.rule == "ACC030"] == [4]


def test_the_innermost_guard_of_cuda_is_the_one_that_stays() -> None:
    program = (
        "import torch\n\nif torch.cuda.is_available():\n    n = torch.cuda.device_count()\n"
        "    if torch.cuda.device_count() > 1:\n        net = torch.nn.DataParallel(net)\n"
        "    net = net.cuda()\n"
    )
    lines = convert(program).after.decode().splitlines()
    assert lines[3:] == [
        "if accel.is_available():",
        "    n = accel.device_count()",
        "    if torch.cuda.device_count() > 1:",
        "        net = torch.nn.DataParallel(net)",
        "    net = net.to(accel.device())",
    ]


def test_a_variable_that_remembers_the_answer() -> None:
    program = (
        "import torch\n\ncuda = torch.cuda.is_available() and ok\nif cuda:\n    net.cuda()\n"
        "providers = ['CUDAExecutionProvider'] if cuda else []\n"
    )
    result = convert(program)
    assert b"cuda = accel.is_available() and ok" in result.after
    assert [f.line for f in result.findings if f.rule == "ACC030"] == [6]


def test_a_variable_that_serves_only_cuda_stays_what_it_was() -> None:
    program = (
        "import torch\n\ncuda = torch.cuda.is_available()\nif cuda:\n"
        "    net = torch.nn.DataParallel(net)\n"
    )
    assert not convert(program).is_changed


_PARALLEL = "if n > 1:\n    net = torch.nn.DataParallel(net)\n"


@pytest.mark.parametrize(
    ("use", "stays"),
    [
        ("", True),
        ("print(n)\n", True),
        ("if n > 1:\n    loss = loss.mean()\n", True),
        ("size = 4 * max(1, n)\n", True),
        ("if n > 0:\n    torch.cuda.manual_seed_all(1)\n", True),
        ("device = 'cuda' if n > 0 else 'cpu'\n", False),
        ("if n:\n    net.cuda()\n", False),
        ("size = 4 * n\n", False),
        ("torch.multiprocessing.spawn(run, nprocs=n)\n", False),
        ("index = rank % n\n", False),
        ("assert n > 1\n", False),
        ("size = max(0, n)\nrun(size)\n", False),
        ("many = 1 < n\nif many:\n    loss = loss.mean()\n", True),
        ("many = n > 0\nif many:\n    net.cuda()\n", False),
        ("if n <= 1:\n    print('one')\n", True),
        ("if n == 1:\n    net.cuda()\n", False),
    ],
)
def test_a_number_of_devices_that_decides_on_data_parallel(use, stays) -> None:
    """It stays where nothing needs it on other devices; else the condition is flagged."""
    result = convert(f"import torch\n\nn = torch.cuda.device_count()\n{use}{_PARALLEL}")
    lines = result.after.decode().splitlines()
    assert ("n = torch.cuda.device_count()" in lines) is stays
    assert ("n = accel.device_count()" in lines) is not stays
    flagged = [f.snippet for f in result.findings if f.rule == "ACC030"]
    assert flagged == ["n = torch.cuda.device_count()" if stays else "if n > 1:"]


@pytest.mark.parametrize("name", ["n", "args.n_gpu", "cfg['gpus']", "args.n_gpu = args.copy_of_it"])
def test_a_number_of_devices_under_any_name(name) -> None:
    read = name.partition(" ")[0]
    program = (
        f"import torch\n\n{name} = 0 if args.cpu else torch.cuda.device_count()\n\n"
        f"def wrap(args, cfg, net):\n    if {read} > 1 and args.wide:\n"
        "        net = torch.nn.DataParallel(net)\n    return net\n"
    )
    assert not convert(program).is_changed


@pytest.mark.parametrize(
    "test",
    [
        "n = torch.cuda.device_count()\nif n < 2:\n    pass\nelse:",
        "n = min(4, torch.cuda.device_count())\nif n > 1:",
        "from torch.cuda import device_count\nn = device_count()\nif n >= 2 and flag:",
        "many = torch.cuda.device_count() > 1\nif many:",
        "parser.add_argument('--gpus', default=torch.cuda.device_count())\nif args.gpus > 1:",
        "def wrap(net, n=torch.cuda.device_count()):\n  if n > 1:",
    ],
)
def test_numbers_that_are_compared_in_other_ways(test) -> None:
    program = f"import torch\n\n{test}\n    net = torch.nn.DataParallel(net)\n"
    result = convert(program)
    assert not result.is_changed
    assert [f.rule for f in result.findings if f.action == "flag"] == ["ACC030", "ACC094"]


@pytest.mark.parametrize(
    "program",
    [
        "n = torch.cuda.device_count()\nif n > 1:\n    loss = loss.mean()\n",
        "n = torch.cuda.device_count()\nif n < 2:\n    net.eval()\n",
        "n = torch.cuda.device_count()\nif m > 1:\n    net = torch.nn.DataParallel(net)\n",
        "n = torch.cuda.device_count()\nif torch.cuda.is_available() and n > 1:\n"
        "    net = torch.nn.DataParallel(net)\n",
    ],
)
def test_a_number_of_devices_that_decides_on_nothing_of_cudas(program) -> None:
    assert b"n = accel.device_count()" in convert(f"import torch\n\n{program}").after


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("torch.cuda.empty_cache()", False),
        ("model.cuda()", False),
        ("use_cuda = True", False),
        ("kernel = kernel.cuda()", False),
        ("self.kernel_size = kernel_size", False),
        ("use_cuda_graphs = True", False),
        ("y = fused_bias_act(x)", True),
        ("from nms.nms_gpu import nms_gpu", True),
        ("from torch.cuda import synchronize", False),
        ("sources += ['src/roi_cuda.c']", True),
        ("sources.append('ops.cu')", True),
        ("flags = [('WITH_CUDA', None)]", True),
        ("torch.backends.cudnn.benchmark = True", True),
        ("model = torch.nn.DataParallel(model)", True),
        ("import bitsandbytes", True),
        ("print(torch.version.cuda)", True),
        ("os.system('nvidia-smi')", True),
        ("from kernels import conv_cuda", True),
        ("graph = torch.cuda.CUDAGraph()", True),
    ],
)
def test_is_kept(body, kept) -> None:
    text = f"import os, torch\nif torch.cuda.is_available() and ok:\n    {body}\n"
    module = Module(Source(text.encode()), "program.py", Options())
    call = next(
        node
        for node in module.all(ast.Call)
        if module.qualified(node.func) == "torch.cuda.is_available"
    )
    assert guards.is_kept(module, call.func) is kept
    assert guards.is_kept(module, call) is kept


def test_a_guard_outside_a_condition_is_not_kept() -> None:
    module = Module(
        Source(b"import torch\na = torch.cuda.is_available()\nb = torch.nn.DataParallel(a)\n"),
        "program.py",
        Options(),
    )
    assert not guards.is_kept(module, module.all(ast.Call)[0].func)


@pytest.mark.parametrize(
    "program",
    [
        "if not torch.cuda.is_available():\n    raise SystemExit(1)\nimport cupy\n",
        "if flag or not torch.cuda.is_available():\n    sys.exit(1)\ng = torch.cuda.CUDAGraph()\n",
        "class A:\n    def __init__(self):\n        self.fast = torch.cuda.is_available()\n\n"
        "    def f(self, n):\n        return torch.nn.DataParallel(n) if self.fast else n\n",
        "def usable():\n    return torch.cuda.is_available()\n\nif usable():\n    import cupy\n",
        "if torch.cuda.is_available():\n    y = _kern[grid](x)\nelse:\n    y = x\n",
    ],
)
def test_other_guards_of_what_only_cuda_has(program) -> None:
    result = convert(f"import sys\nimport torch\n\n{program}")
    assert b"torch.cuda.is_available()" in result.after
    assert "ACC030" in {f.rule for f in result.findings if f.action == "flag"}


@pytest.mark.parametrize(
    "program",
    [
        "if not torch.cuda.is_available():\n    return_early()\nimport cupy\n",
        "if not torch.cuda.is_available():\n    raise SystemExit(1)\n"
        "net = torch.nn.DataParallel(net)\n",
        "if torch.cuda.is_available():\n    f()\nelif mps.is_available():\n    g()\n",
        "d = 'cuda' if torch.cuda.is_available() else 'cpu'\nif d is None:\n    import cupy\n",
        "if torch.cuda.is_available():\n    assert not torch._C.is_in_fork()\n",
        "if torch.npu.is_available():\n    x = 1\nelif torch.cuda.is_available():\n    x = 2\n",
        "def has_cuda():\n    return torch.cuda.is_available()\n\nif has_cuda():\n    net.cuda()\n",
        "if torch.cuda.is_available():\n    y = handlers['a'](x)\n",
        "if not torch.cuda.is_available():\n    x = 1\nelse:\n    x = net.cuda()\n",
    ],
)
def test_guards_of_what_any_device_has(program) -> None:
    result = convert(f"import torch\n\n{program}")
    assert b"torch.cuda.is_available" not in result.after
    assert "ACC030" not in {f.rule for f in result.findings}


def test_a_branch_for_ascend_that_follows_is_reached() -> None:
    program = (
        "import torch\n\nif torch.cuda.is_available() and a:\n    torch.cuda.empty_cache()\n"
        "elif is_torch_npu_available():\n    torch.npu.empty_cache()\n"
    )
    result = convert(program)
    assert b"if torch.cuda.is_available() and a:\n    accel.empty_cache()" in result.after
    assert [f.action for f in result.findings if f.rule == "ACC030"] == ["keep"]


def test_an_attribute_that_guards_both() -> None:
    program = (
        "import torch\n\nclass A:\n    def __init__(self):\n"
        "        self.fast = torch.cuda.is_available()\n\n    def f(self, n):\n"
        "        if self.fast:\n            n.cuda()\n"
        "        return torch.nn.DataParallel(n) if self.fast else n\n"
    )
    result = convert(program)
    assert b"self.fast = accel.is_available()" in result.after
    assert [f.line for f in result.findings if f.rule == "ACC030"] == [10]


def test_an_attribute_that_a_context_is_given_is_the_programs_own() -> None:
    program = (
        "import torch\n\nclass F(torch.autograd.Function):\n    @staticmethod\n"
        "    def forward(ctx, x):\n        ctx.is_cuda = x.is_cuda\n        return x\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g if ctx.is_cuda else -g\n"
    )
    after = convert(program).after.decode()
    assert "ctx.is_cuda = accel.on_accelerator(x)" in after
    assert "return g if ctx.is_cuda else -g" in after


@pytest.mark.parametrize(
    "program",
    [
        "print(f\"{'cuda' if torch.cuda.is_available() else 'cpu'}\")\n",
        "print('on ' + ('cpu' if not torch.cuda.is_available() else 'cuda'))\n",
    ],
)
def test_the_test_of_a_choice_that_is_left_to_a_human_stays(program) -> None:
    """Converted alone, it would say 'cuda' on another device."""
    result = convert(f"import torch\n\n{program}")
    assert not result.is_changed
    assert {f.rule for f in result.findings if f.action == "flag"} == {"ACC006"}


NEGATIVES = [
    "if impl == 'cuda' and x.device.type == 'cuda' and _init():\n    pass",
    "use_fused = ok and device_type == 'cuda'",
    "opt = torch.optim.AdamW(p, fused=(device.type == 'cuda'))",
    "if device.type == 'cuda' and has_triton():\n    pass",
    "if device.type == 'cuda':\n    y = conv_cuda(x)",
    "if self.backend == 'cuda':\n    pass",
    "if cfg['impl'] != 'cuda':\n    pass",
    "if name == 'cuda':\n    pass",
    "if mode in ('cuda', 'triton'):\n    pass",
    "if 'cuda' in names:\n    pass",
    "if 'cuda' in version:\n    pass",
    "if 'cuda' in {'cuda': 1}:\n    pass",
    "if path.startswith('cuda'):\n    pass",
    "if tag.endswith('cuda'):\n    pass",
    "if node.type == 'cuda':\n    pass",
    "assert device in ('cpu', 'cuda')",
    "if device.type not in ['cpu', 'cuda']:\n    raise ValueError(device)",
    "index = device.replace('cuda:', '')",
    "index = device.split('cuda:')[1]",
    "n = device.strip('cuda')",
    "x = text.replace('cuda', 'hip')",
    "if args.is_cuda:\n    pass",
    "x.is_cuda = True",
    "is_cuda = 1",
    "if x.is_cuda:\n    y = ops._C.run(x)",
    "if x.is_cuda and n > 1:\n    y = torch.nn.parallel.data_parallel(m, x)",
    "match device:\n    case 'cuda':\n        pass",
    "if 'a' < 'cuda' < 'z':\n    pass",
    "if device == b == 'cuda':\n    pass",
    "if line.startswith(('cuda', 'gpu')):\n    pass",
    "a = device == 'cuda:1'",
    "a = 'cuda:0' in device",
    "a = device.startswith('cuda:1')",
    "a = next_device().startswith('cuda:')",
    "a = device == 'cuda'",
    "a = args.device == 'cuda'",
    "a = x.device != 'cuda'",
    "a = str(x.device) == 'cuda'",
    "device_type = args.device\na = device_type == 'cuda'",
    "device = torch.device(name)\na = device == 'cuda'",
    "device = args.device or 'cpu'\na = 'cuda' == device",
    "for device in names:\n    a = device == 'cuda'",
    "a = cfg.get('device') == 'cuda'",
    "rows = df[df.device == 'cuda']",
    "a = device.type in ('cuda', 'xpu')",
    "a = device.type not in ['cuda', 'npu']",
    "a = device in ('cuda',)",
    "here = torch.accelerator.current_accelerator()\na = here.type == 'cuda'",
    "a = torch.accelerator.current_accelerator().type != 'cuda'",
    "a = x.device == torch.device('cuda:1')",
    "a = x.device != torch.device('cuda')",
    "a = torch.device('cuda') in devices",
    "f = {'cuda': 1, 'cpu': 2}[device.type]",
    "if device == 'cuda':\n    a()\nelif device == 'npu':\n    b()",
    "if device.type == 'xpu':\n    a()\nelif b:\n    pass\nelif device.type == 'cuda':\n    b()",
    "def f(device):\n    if device.type == 'cuda':\n        return 1\n"
    "    if device.type == 'mps':\n        return 2\n    return 3",
    "a = 1 if device.type == 'cuda' else 2 if device.type == 'npu' else 3",
    "if x.is_cuda:\n    a()\nelif x.is_xpu:\n    b()",
    "if device.type == 'cuda' and is_rocm_platform():\n    pass",
    "if device.type == 'cuda' and check_cuda_links():\n    pass",
]


@pytest.mark.parametrize("program", NEGATIVES)
def test_what_is_no_general_question_stays(program) -> None:
    text = f"import torch\n\n{program}\n"
    if "ops._C" in program:
        text = f"import torch\n\ndef f(x):\n    {program}\n".replace("\n    y", "\n        y")
    result = convert(text)
    assert result.after.decode() == text
    assert {finding.action for finding in result.findings} <= {"keep", "flag"}

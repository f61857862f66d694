"""Devices by name and number: what examples of the rules do not show."""

import ast

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.project import index


def convert(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    ast.parse(result.after)
    again = convert_source(result.after, "program.py", Options(**options))
    assert again.after == result.after
    return result


def after(program: str) -> str:
    more = "from torch.nn.parallel import DistributedDataParallel as P\n" if "P(" in program else ""
    return convert(f"import torch\n{more}" + program + "\n").after.decode()


def line(program: str) -> str:
    """The last line of a program after conversion."""
    return after(program).rstrip("\n").rpartition("\n")[2]


LINES = {
    # .cuda(...)
    "x.cuda()": "x.to(accel.device())",
    "x.cuda( )": "x.to( accel.device())",
    "x.cuda(0)": "x.to(accel.device(0))",
    "x.cuda(device=gpu)": "x.to(device=accel.device(gpu))",
    "x.cuda(non_blocking=True)": "x.to(accel.device(), non_blocking=True)",
    "x.cuda(None, True)": "x.to(accel.device(None), non_blocking=True)",
    "x.cuda(0, False, torch.channels_last)": (
        "x.to(accel.device(0), non_blocking=False, memory_format=torch.channels_last)"
    ),
    "x.cuda(torch.device('cuda:1'))": "x.to(accel.device(1))",
    "x.cuda(torch.cuda.current_device())": "x.to(accel.device())",
    "x.cuda(f'cuda:{rank}')": "x.to(accel.device(rank))",
    "def f(x, y):\n    return x.cuda(y.get_device())": "    return x.to(y.device)",
    "def f(x, y):\n    return x.to((y + 1).get_device())": "    return x.to((y + 1).device)",
    "x.cuda(self.get_device())": "x.to(accel.device(self.get_device()))",
    "x.cuda((gpu))": "x.to((accel.device(gpu)))",
    "x.cuda((gpu), (True))": "x.to((accel.device(gpu)), non_blocking=(True))",
    # storages take the device by its name only
    "load(lambda s, l: s.cuda())": "load(lambda s, l: s.to(device=accel.device()))",
    "load(lambda s, l: s.cuda((0)))": "load(lambda s, l: s.to(device=(accel.device(0))))",
    "load(lambda s, l: s.cuda(device=n))": "load(lambda s, l: s.to(device=accel.device(n)))",
    "load(lambda s, l: s.cuda(n) if big else s)": (
        "load(lambda s, l: s.to(device=accel.device(n)) if big else s)"
    ),
    "loc = lambda s, l: s.cuda(torch.device('cuda:1'))": (
        "loc = lambda s, l: s.to(device=accel.device(1))"
    ),
    "def place(storage, loc):\n    return storage.cuda(0)": (
        "    return storage.to(device=accel.device(0))"
    ),
    "torch.load(p, map_location=place)\ndef place(s, at):\n    return s.cuda()": (
        "    return s.to(device=accel.device())"
    ),
    "s = x.untyped_storage()\ns.cuda(non_blocking=True)": (
        "s.to(device=accel.device(), non_blocking=True)"
    ),
    "x.storage().cuda(1, True)": "x.storage().to(device=accel.device(1), non_blocking=True)",
    "f(lambda x, y: (x.cuda(), y.cuda()))": (
        "f(lambda x, y: (x.to(accel.device()), y.to(accel.device())))"
    ),
    "f(lambda x: x.cuda())": "f(lambda x: x.to(accel.device()))",
    "(a if b else c).cuda()": "(a if b else c).to(accel.device())",
    "[y.cuda() for y in x]": "[y.to(accel.device()) for y in x]",
    "x.cuda().half().cuda(1)": "x.to(accel.device()).half().to(accel.device(1))",
    "f(x.cuda(), *y, k=z.cuda(0))": "f(x.to(accel.device()), *y, k=z.to(accel.device(0)))",
    "print(f'{x.cuda():>{w.cuda()}}')": (
        "print(f'{x.to(accel.device()):>{w.to(accel.device())}}')"
    ),
    # arguments
    "x.to('cuda:3', non_blocking=True)": "x.to(accel.device(3), non_blocking=True)",
    "x.to('cu' 'da')": "x.to(accel.device())",
    "x.new_zeros(2, device='cuda')": "x.new_zeros(2, device=accel.device())",
    "m.to_empty(device='cuda')": "m.to_empty(device=accel.device())",
    "m = load(p, device_map={'': 'cuda:0'})": "m = load(p, device_map={'': accel.device_str(0)})",
    "build(device='cuda:1')": "build(device=accel.device_str(1))",
    "x.to('cuda' if flag else 'cpu')": "x.to(accel.default_device_type() if flag else 'cpu')",
    "x.to(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))": (
        "x.to(torch.device(accel.default_device_type()))"
    ),
    "x.to('cuda:2' if torch.cuda.is_available() else 'cpu')": "x.to(accel.device_str(2))",
    # built names
    "x.to(f'cuda:{a.rank + 1}')": "x.to(accel.device(a.rank + 1))",
    "x.to(f'cuda:{gpu}')": "x.to(accel.device(int(gpu)))",
    "x.to(f'cuda:{int(gpu):d}')": "x.to(accel.device(int(gpu)))",
    "x.to('cuda:%s' % (local_rank,))": "x.to(accel.device(local_rank))",
    "x.to('cuda:{:d}'.format(rank))": "x.to(accel.device(rank))",
    "x.to('cuda:{0}'.format(3))": "x.to(accel.device(3))",
    "x.to('cuda:' + str(rank))": "x.to(accel.device(rank))",
    # torch.device
    "d = torch.device('cuda')": "d = torch.device(accel.default_device_type())",
    "d = torch.device('cuda', index=1)": "d = accel.device(1)",
    "d = torch.device('cuda', None)": "d = torch.device(accel.default_device_type(), None)",
    "d = torch.device(0)": "d = accel.device(0)",
    "d = torch.device(type='cuda')": "d = torch.device(type=accel.default_device_type())",
    # numbers
    "x.to(args.local_rank)": "x.to(accel.device(args.local_rank))",
    "model.to(0)": "model.to(accel.device(0))",
    "device = 1\nfoo.to(device)": "foo.to(accel.device(device))",
    "x.to(0, non_blocking=True)": "x.to(accel.device(0), non_blocking=True)",
    "x.to(device=0)": "x.to(device=accel.device(0))",
    "x.to(0).unsqueeze(1)": "x.to(accel.device(0)).unsqueeze(1)",
    "p(s, **k).to(0).to('cpu')": "p(s, **k).to(accel.device(0)).to('cpu')",
    "AutoModel.from_pretrained(n).to(1)": "AutoModel.from_pretrained(n).to(accel.device(1))",
    "ToyNet().to(1)": "ToyNet().to(accel.device(1))",
    "t(s, return_tensors='pt').to(0)": "t(s, return_tensors='pt').to(accel.device(0))",
    "x.to(self._rank)": "x.to(accel.device(self._rank))",
    "x.to(ddp_local_rank)": "x.to(accel.device(ddp_local_rank))",
    "x.to(f'cuda:{low_rank}')": "x.to(accel.device(int(low_rank)))",
    "x.to(gpu, torch.half)": "x.to(accel.device(gpu), torch.half)",
    "x.to(device=local_rank)": "x.to(device=accel.device(local_rank))",
    # DistributedDataParallel
    "P(m, device_ids=['cuda:1'], output_device='cuda:1')": (
        "P(m, device_ids=accel.ddp_device_ids(1), output_device=accel.ddp_output_device(1))"
    ),
    "P(m, device_ids=[torch.device('cuda:0')], output_device=torch.device('cuda', r))": (
        "P(m, device_ids=accel.ddp_device_ids(0), output_device=accel.ddp_output_device(r))"
    ),
    "P(m, device_ids=[f'cuda:{rank}'], output_device=get() % 8)": (
        "P(m, device_ids=accel.ddp_device_ids(rank), "
        "output_device=accel.ddp_output_device(get() % 8))"
    ),
    "P(m, device_ids=[0], output_device=None)": (
        "P(m, device_ids=accel.ddp_device_ids(0), output_device=None)"
    ),
    # imported values and tables
    "from lib import net\nnet.parameters()\nnet.cuda()": "net.to(accel.device())",
    "from lib import net\nnet(x)\nnet.cuda()": "net.to(accel.device())",
    "import lib\nlib.model.cuda()": "lib.model.to(accel.device())",
    "load(encode_kwargs={'device': 'cuda'})": (
        "load(encode_kwargs={'device': accel.default_device_type()})"
    ),
    # defaults of look-ups
    "d = torch.device(opts.get('device', 'cuda'))": (
        "d = torch.device(opts.get('device', accel.default_device_type()))"
    ),
}


@pytest.mark.parametrize(("before", "wanted"), LINES.items())
def test_lines(before, wanted) -> None:
    assert line(before) == wanted


def test_what_stands_in_arguments_is_converted_too() -> None:
    assert line("x.cuda(pick(y.cuda()))") == "x.to(accel.device(pick(y.to(accel.device()))))"


def test_a_number_that_may_be_none_is_wrapped_only_where_it_is_not() -> None:
    """`x.to(None)` is x, and `accel.device(None)` the current device."""
    program = (
        "def f(x, gpu=None):\n    y = x.to(gpu)\n    if gpu is not None:\n        x = x.to(gpu)\n"
        "    return x, x.cuda(gpu)"
    )
    assert after(program).splitlines()[3:] == [
        "    y = x.to(gpu)",
        "    if gpu is not None:",
        "        x = x.to(accel.device(gpu))",
        "    return x, x.to(accel.device(gpu))",
    ]


def test_nothing_is_imported_that_the_text_does_not_need() -> None:
    program = "def f(x, y):\n    return x.cuda(y.get_device()), x.to(y.get_device())"
    assert after(program) == (
        "import torch\ndef f(x, y):\n    return x.to(y.device), x.to(y.device)\n"
    )


def test_comments_and_lines_stay() -> None:
    before = "x = x.cuda(  # here\n    gpu,  # there\n    non_blocking=True,\n)  # cuda"
    assert after(before).endswith(
        "x = x.to(  # here\n    accel.device(gpu),  # there\n    non_blocking=True,\n)  # cuda\n"
    )


def test_bytes_before_stay_in_place() -> None:
    assert line('é = "ü"; x.cuda(); y = "ö".join(z.cuda())') == (
        'é = "ü"; x.to(accel.device()); y = "ö".join(z.to(accel.device()))'
    )


def test_a_device_without_a_number_keeps_following_set_device() -> None:
    """On CUDA `torch.device("cuda")` is equal to no device with a number; nor may it be here."""
    program = "DEVICE = torch.device('cuda')\nNAME = 'cuda'\ntorch.ones(1).to(NAME)"
    found = after(program)
    assert "DEVICE = torch.device(accel.default_device_type())" in found
    assert "NAME = accel.default_device_type()" in found


def test_names_from_other_files_serve_as_evidence() -> None:
    files = {
        "batch.py": b"class Batch:\n    def cuda(self):\n        return self\n",
        "train.py": b"import torch\nfrom batch import Batch\n\nb = Batch()\nb.cuda()\n"
        b"torch.ones(1).cuda()\n",
    }
    result = convert_source(files["train.py"], "train.py", Options(), index(files))
    assert b"b.cuda()" in result.after
    assert b"torch.ones(1).to(accel.device())" in result.after
    assert [f.line for f in result.findings if f.action == "flag"] == [5]


def test_what_a_cuda_of_the_programs_own_moves_is_converted_within() -> None:
    """So that it serves every device, while its callers keep calling it."""
    program = (
        "class Batch:\n    def __init__(self, x):\n        self.x, self.n = x, torch.ones(1)\n"
        "    def cuda(self):\n        self.x = self.x.cuda()\n        return self\n"
        "def put(batch, y: torch.Tensor):\n    return batch.cuda(), y.cuda()\n"
    )
    found = after(program)
    assert "        self.x = self.x.to(accel.device())\n" in found
    assert "    return batch.cuda(), y.to(accel.device())\n" in found


def test_parts_that_may_move_themselves_are_left() -> None:
    program = (
        "class Part:\n    def cuda(self):\n        self.n += 1\n"
        "class Batch:\n    def __init__(self, x):\n        self.x, self.n = x, 0\n"
        "        self.y = torch.ones(1)\n"
        "    def cuda(self):\n        self.x.cuda()\n        self.y = self.y.cuda()\n"
    )
    found = after(program)
    assert "        self.x.cuda()\n        self.y = self.y.to(accel.device())\n" in found


def test_a_function_of_another_file_is_no_method() -> None:
    files = {
        "tools.py": b"def cuda(x):\n    return x\n",
        "train.py": b"import torch\nimport tools\n\ntools.cuda(torch.ones(1))\n",
    }
    result = convert_source(files["train.py"], "train.py", Options(), index(files))
    assert result.after == files["train.py"]


@pytest.mark.parametrize(
    "program",
    [
        "@torch.jit.script\ndef f(x):\n    return x.cuda() if x.is_cuda else x",
        "class N(torch.jit.ScriptModule):\n    @torch.jit.script_method\n"
        "    def forward(self, x):\n        return x.to('cuda')",
        "def f(x):\n    return x.cuda()\n\ng = torch.jit.script(f)",
        "class N(torch.nn.Module):\n    def forward(self, x):\n        return x.cuda()\n\n"
        "net = N()\ng = torch.jit.script(net)",
    ],
)
def test_torchscript_cannot_call_the_library(program) -> None:
    result = convert(f"import torch\n\n{program}\n")
    assert not result.is_changed
    assert "TorchScript" in " ".join(f.message for f in result.findings if f.action == "flag")


FLAGGED = {
    "def f(arm):\n    arm.to(3)": "ACC007",
    "class Arm:\n    def to(self, n):\n        pass\n\ndef f(x, rank):\n    x.to(rank)": "ACC007",
    "from lib import backends\n\nbackends.cuda()": "ACC010",
    "import lib\n\nlib.backends.cuda()": "ACC010",
    "build(device_type='cuda')": "ACC003",
    "import requests\n\nrequests.post(u, json={'device': 'cuda'})": "ACC003",
    "try:\n    y = x.cuda()\nexcept RuntimeError:\n    pass": "ACC001",
    "try:\n    x.to('cuda')\nexcept Exception:\n    x = None": "ACC002",
    "try:\n    x.to(f'cuda:{rank}')\nexcept Exception:\n    x = None": "ACC002",
    "try:\n    x.to(torch.device('cuda'))\nexcept Exception:\n    x = None": "ACC004",
    "try:\n    y = x.to(rank)\nexcept Exception:\n    y = None": "ACC007",
}


@pytest.mark.parametrize(("program", "rule"), FLAGGED.items())
def test_what_cannot_be_told_is_left_to_a_person(program, rule) -> None:
    text = f"import torch\n\n{program}\n"
    result = convert(text)
    assert result.after.decode() == text
    assert rule in {finding.rule for finding in result.findings if finding.action == "flag"}


def test_a_device_that_is_only_named_in_a_try_raises_nothing() -> None:
    program = (
        "try:\n    d = torch.device('cuda:1')\n    e = torch.device('cuda')\n"
        "except RuntimeError:\n    d = e = None"
    )
    assert "    d = accel.device(1)\n    e = torch.device(accel" in after(program)


def test_a_to_of_the_trees_own_is_given_a_text_where_it_was() -> None:
    program = (
        "class Batch:\n    def to(self, where):\n        return where.split(':')\n\n"
        "def f(x):\n    return x.to('cuda'), torch.ones(1).to('cuda')"
    )
    assert after(program).endswith(
        "    return x.to(accel.default_device_type()), torch.ones(1).to(accel.device())\n"
    )


NEGATIVES = [
    "def f(torch):\n    x.to(torch.device('cuda:0'))",
    "class torch:\n    device = str\n\ntorch.device('cuda')",
    "from devices import device\n\ndevice('cuda')",
    "class P:\n    def to(self, where):\n        pass\n\nP().to('cuda')",
    "import pathlib\n\np = pathlib.Path('a')\np.to('cuda')",
    "parser.add_argument('--cuda', dest='cuda', default=False)",
    "parser.add_argument('cuda')",
    "parser.add_argument('--no-cuda', help='cuda')",
    "parser.add_argument('--format', default='cuda')",
    "impl = 'cuda'\nif impl == 'ref':\n    pass",
    "def conv(x, backend='cuda'):\n    if backend == 'cuda':\n        pass",
    "options = {'cuda': 'cuda'}",
    "options = {'backend': 'cuda'}\nbuild(options['backend'])",
    "x = 'cuda' in open('f').read()",
    "url = 'tcp://cuda:1'",
    "host = 'cuda'\nconnect(host)",
    "print('cuda', 'cuda:0')",
    "logger.warning('cuda')",
    "warnings.warn('cuda')",
    "raise RuntimeError('cuda')",
    "assert ok, 'cuda:0'",
    "open('cuda')",
    "os.path.join('cuda', 'x')",
    "torch.save(x, 'cuda')",
    "x.cuda = True",
    "y = x.cuda",
    "cuda = 3\nprint(cuda)",
    "def cuda():\n    pass\n\ncuda()",
    "from mine import cuda\n\ncuda.start()",
    "import numba.cuda\n\nnumba.cuda.jit(f)",
    "names = ['cpu', 'cuda']\nshow(names)",
    "kinds = ('cuda', 'xpu')",
    "for kind in ('cuda', 'xpu'):\n    x.to(kind)",
    "x: 'cuda' = 1",
    "key = ('cuda', 1)\ntable[key] = 2",
    "table['cuda'] = 1",
    "table.get('cuda')",
    "setattr(x, 'cuda', 1)",
    "@mark('cuda')\ndef f():\n    pass",
    "class E(Enum):\n    CUDA = 'cuda'",
    "import lightgbm\n\nlightgbm.LGBMClassifier(device='cuda')",
    "import xgboost\n\np = {'device': 'cuda'}\nxgboost.train(p)",
    "import faiss\n\nfaiss.index(device='cuda')",
    "import onnxruntime\n\nonnxruntime.InferenceSession(p, device='cuda')",
    "text = 'cuda:' + error\nprint(text)",
    "label = f'cuda:{memory} MiB'\nprint(label)",
    "print('cuda:%d' % rank)",
    "name = 'cuda:{}'.format(a, b)\nlook(name)",
    "x.to(f'cuda:{a}{b}')",
    "x.to(f'{a}cuda')",
    "def backend():\n    return 'cuda'",
    "lines = 'cuda'.split()",
    "'cuda'.upper()",
    "x = y['cuda'].to(z)",
    "sql = 'select cuda from t'",
    "run(['cuda', '--x'])",
    "subprocess.run('cuda')",
    "torch.ops.load_library('cuda')",
    "register('cuda', handler)",
    "where = 'cuda'\nwhere += ':0'\nx.to(where)",
    "x.cuda(*a)",
    "x.cuda(**a)",
    "x.cuda(stream=s)",
    "torch.Tensor.cuda(x)",
    "list(map(torch.Tensor.cuda, xs))",
    "class N(torch.nn.Module):\n    def cuda(self, d=None):\n        return super().cuda(d)",
    "def g(cb):\n    cb('cuda')",
    "yield_ = (a for a in ('cuda', b))",
]


@pytest.mark.parametrize("program", NEGATIVES)
def test_what_is_no_device_stays(program) -> None:
    text = f"import torch\n\n{program}\n"
    result = convert(text)
    assert result.after.decode() == text
    assert {finding.action for finding in result.findings} <= {"keep", "flag"}


def test_there_are_many_negatives() -> None:
    assert len(set(NEGATIVES)) >= 60

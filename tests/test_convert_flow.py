"""Where values go, what they are for, and what expressions are."""

import ast

import pytest

from accel.convert.flow import (
    device_like,
    instance_class,
    is_device,
    is_device_position,
    is_device_string,
    is_tensor_or_module,
    may_be_none,
    purpose,
    sinks,
)
from accel.convert.flow.questions import is_question
from accel.convert.flow.showing import is_shown
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.source import Source


def module_of(text: str) -> Module:
    return Module(Source(text.encode()), "program.py", Options())


def literal(module: Module, text: str = "cuda") -> ast.Constant:
    return next(node for node in module.all(ast.Constant) if node.value == text)


def last_value(module: Module) -> ast.expr:
    statement = module.tree.body[-1]
    assert isinstance(statement, ast.Expr)
    return statement.value


SINKS = {
    "x.to('cuda')": {"device"},
    "torch.device('cuda')": {"device"},
    "f(device='cuda')": {"device"},
    "torch.load(p, 'cuda')": {"device"},
    "torch.autocast('cuda')": {"device_type"},
    "torch.autocast(device_type='cuda')": {"device_type"},
    "build(device_type='cuda')": {"kind"},
    "torch.testing.skip(device_type='cuda')": {"kind"},
    "send({'device': 'cuda'})": {"passed"},
    "send(dict(device='cuda'))": {"passed"},
    "c = dict(device='cuda')": {"stored"},
    "xgboost.XGBClassifier(device='cuda')": {"foreign"},
    "a == 'cuda'": {"comparison"},
    "'cuda' in a": {"comparison"},
    "a in ['cuda', 'cpu']": {"comparison"},
    "a = 'cuda'\na.startswith('c')": {"comparison"},
    "a = 'cuda'\na.split(':')": {"parsing"},
    "a = 'cuda'\na[:2]": {"parsing"},
    "d['cuda']": {"key"},
    "d = {'cuda': 1}": {"key"},
    "p.add_argument('cuda')": {"option"},
    "p.add_argument('--x', dest='cuda')": {"option"},
    "p.add_argument('--x', choices=['cuda', 'cpu'])": {"choice"},
    "p.add_argument('--x', help='cuda')": {"help"},
    "p.add_argument('--place', default='cuda')\nx.to(a.place)": {"device"},
    "p.add_argument('-q', '--the-place', default='cuda')\nx.to(a.the_place)": {"device"},
    "p.add_argument('--x', default='cuda')": {"stored"},
    "open('cuda')": {"path"},
    "os.path.join('a', 'cuda')": {"path"},
    "print('cuda')": {"message"},
    "log.info('cuda')": {"message"},
    "raise ValueError('cuda')": {"message"},
    "assert x, 'cuda'": {"message"},
    "a = 'cuda'\nprint(f'on {a}')": {"message"},
    "a = 'cuda'\nx.to(f'{a}:0')": {"device"},
    "a = 'cuda'\nif a:\n    pass": {"test"},
    "a = 'cuda'\na is None": {"test"},
    "'cuda'": {"discarded"},
    "def f():\n    return 'cuda'": {"return"},
    "def f():\n    return 'cuda'\nx.to(f())": {"device"},
    "g('cuda')": {"passed"},
    "a = 'cuda'": {"stored"},
    "def f(a='cuda'):\n    x.to(a)": {"device"},
    "def f(*, a='cuda'):\n    x.to(a)": {"device"},
    "f = lambda a='cuda': x.to(a)": {"device"},
    "def f(a):\n    x.to(a)\nf('cuda')": {"device"},
    "def f(b, a):\n    x.to(a)\nf(1, a='cuda')": {"device"},
    "class C:\n    def __init__(self, a):\n        x.to(a)\nC('cuda')": {"device"},
    "class C:\n    def m(self, a):\n        x.to(a)\nc = C()\nc.m('cuda')": {"device"},
    "class C:\n    a = 'cuda'\n    def m(self):\n        x.to(self.a)": {"device"},
    "class C:\n    def m(self):\n        self.a = 'cuda'\n        x.to(self.a)": {"device"},
    "a = 'cuda' if b else 'cpu'\nx.to(a)": {"device"},
    "a = b or 'cuda'\nx.to(a)": {"device"},
    "if (a := 'cuda'):\n    x.to(a)": {"device", "test"},
    "a, b = 'cuda', 1\nx.to(a)": {"device"},
    "for a in ['cuda', 'cpu']:\n    x.to(a)": {"device"},
    "a = ['cuda', 'cpu']\nx.to(a[0])": {"device"},
    "d = {'p': 'cuda'}\nx.to(d['p'])": {"device"},
    "d['p'] = 'cuda'\nx.to(d['p'])": {"device"},
    "a = os.environ.get('D', 'cuda')\nx.to(a)": {"device"},
    "a = getattr(o, 'place', 'cuda')\nx.to(a)": {"device"},
    "import dataclasses\nclass C:\n    a: str = dataclasses.field(default='cuda')\nx.to(C().a)": {
        "device"
    },
    "a = str('cuda').strip()\nx.to(a)": {"device"},
    "def f(r, a):\n    x.to(a)\nmp.spawn(f, args=('cuda',))": {"device"},
    "def f(a):\n    x.to(a)\nProcess(target=f, args=('cuda',))": {"device"},
    "a = 'cuda'\na += ':0'": {"parsing", "stored"},
    "f(*'cuda')": {"unknown"},
}


@pytest.mark.parametrize(("program", "kinds"), SINKS.items())
def test_sinks(program, kinds) -> None:
    more = ", xgboost" if "xgboost" in program else ""
    module = module_of(f"import os, torch{more}\n{program}\n")
    found = {sink.kind for sink in sinks(module, literal(module))}
    assert found == kinds if "unknown" not in kinds else found <= kinds and found


def test_a_value_that_goes_in_circles_ends() -> None:
    module = module_of("import torch\na = 'cuda'\nb = a\na = b\nx.to(b)\n")
    assert {sink.kind for sink in sinks(module, literal(module))} == {"device"}


PURPOSES = {
    "where = 'cuda'\nx.to(where)": "device",
    "where = 'cuda'\nx.to(where)\nif where == 'cpu':\n    print(where)": "device",
    "where = 'cuda'\nx.to(where)\nsearch(where)": "mixed",
    "device = 'cuda'\ntrain(device)": "device",
    "device = 'cuda'\ntrain(device)\ndevice[0]": "mixed",
    "where = 'cuda'\ntrain(where)": "unknown",
    "impl = 'cuda'\nif impl == 'cuda':\n    pass": "other",
    "print('cuda')": "other",
    "params = {'device': 'cuda'}\ntrain(params)": "unknown",
    "params = {'device': 'cuda'}\ntrain(params)\nx.to(params['device'])": "device",
    "params = dict(device='cuda')\ntrain(params)": "unknown",
    "params = {'device': 'cuda'}\ntrain(**params)": "device",
    "params = {'where': 'cuda'}\ntrain(**params)": "unknown",
    "load(model_kwargs={'device': 'cuda'})": "device",
    "send(json={'a': [{'device': 'cuda'}]})": "unknown",
    "def run(c):\n    x.to(c['device'])\nrun({'device': 'cuda'})": "device",
    "def run(c):\n    x.to(c.get('device'))\nparams = {'device': 'cuda'}\nrun(c=params)": "device",
    "def run(c):\n    c['device'].split(':')\nrun({'device': 'cuda'})": "unknown",
    "params = {'device': 'cuda'}\nprint(params)": "device",
    "rows.append({'device': 'cuda'})": "device",
    "build(device_type='cuda')": "unknown",
    "kind = 'cuda'\nbuild(device_type=kind)\ntorch.autocast(kind)": "device",
    "def build(device_type):\n    torch.autocast(device_type)\nbuild(device_type='cuda')": "device",
    "import xgboost\nparams = {'device': 'cuda'}\nxgboost.train(params)": "unknown",
}


@pytest.mark.parametrize(("program", "meaning"), PURPOSES.items())
def test_purpose(program, meaning) -> None:
    module = module_of("import torch\n" + program + "\n")
    found = purpose(module, literal(module))
    assert found.meaning == meaning
    assert found.reason


DEVICES = {
    "torch.device('cuda')": True,
    "x.device": True,
    "args.device": True,
    "device": True,
    "device.type": True,
    "'cuda:1'": True,
    "'cuda-node'": False,
    "str(device)": True,
    "devices": None,
    "device_name": None,
    "token.type": None,
    "f'cuda:{i}'": True,
    "'cuda:%d' % i": True,
    "'cuda' if a else 'cpu'": True,
    "'cuda' if a else b": None,
    "n": None,
}


@pytest.mark.parametrize(("expression", "answer"), DEVICES.items())
def test_is_device(expression, answer) -> None:
    module = module_of(f"import torch\n{expression}\n")
    assert is_device(module, last_value(module)) is answer


TENSORS = {
    "torch.ones(2)": True,
    "torch.ones(2).view(1)": True,
    "torch.nn.Linear(1, 1)": True,
    "Net()": True,
    "net": True,
    "Box()": False,
    "'text'": False,
    "[1]": False,
    "pathlib.Path('x')": False,
    "x": None,
    "load()": None,
    "torch.load(p)": None,
    "a + torch.ones(1)": True,
}


@pytest.mark.parametrize(("expression", "answer"), TENSORS.items())
def test_is_tensor_or_module(expression, answer) -> None:
    module = module_of(
        "import pathlib, torch\nclass Net(torch.nn.Module):\n    pass\nclass Box:\n    pass\n"
        f"net = Net()\n{expression}\n"
    )
    assert is_tensor_or_module(module, last_value(module)) is answer


def test_a_class_whose_base_is_not_known_may_be_a_module() -> None:
    module = module_of("from lib import Base\nclass Net(Base):\n    pass\nNet()\n")
    owner = instance_class(module, last_value(module))
    assert owner is not None
    assert owner.name == "Net"
    assert is_tensor_or_module(module, last_value(module)) is None


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("def f(a=None):\n    return a", True),
        ("def f(a: str | None):\n    return a", True),
        ("def f(a: 'Optional[str]'):\n    return a", True),
        ("def f(a):\n    return a", False),
        ("def f(a='cuda'):\n    return a", False),
        ("def f(*, a=None):\n    return a", True),
    ],
)
def test_may_be_none(program, answer) -> None:
    module = module_of(program + "\n")
    value = module.all(ast.Return)[0].value
    assert value is not None
    assert may_be_none(module, value) is answer


def test_an_option_without_a_default_may_be_none() -> None:
    module = module_of(
        "p.add_argument('--a')\np.add_argument('--b', default='x')\nargs.a\nargs.b\n"
    )
    a, b = (statement.value for statement in module.tree.body[-2:])  # type: ignore[attr-defined]
    assert may_be_none(module, a)
    assert not may_be_none(module, b)


def test_positions() -> None:
    module = module_of("import torch\nx.to('cuda')\ng('cuda')\ntorch.autocast('cuda')\n")
    texts = [node for node in module.all(ast.Constant) if node.value == "cuda"]
    assert [is_device_position(module, node) for node in texts] == [True, False, False]


def test_names_of_devices() -> None:
    assert is_device_string("cuda:3")
    assert is_device_string("npu")
    assert not is_device_string("cuda:x")
    assert not is_device_string("cudart")
    assert not is_device_string(3)
    assert device_like("target_device")
    assert device_like("DEVICE")
    assert device_like("dev")
    assert not device_like("develop")
    assert not device_like("name")


QUESTIONS = {
    "try:\n    x.cuda()\nexcept RuntimeError:\n    ok = False": True,
    "try:\n    y = x.cuda()\nexcept (AssertionError, OSError):\n    pass": True,
    "try:\n    x.cuda()\n    ok = True\nexcept:\n    pass": True,
    "try:\n    if a:\n        y = x.cuda()\nexcept RuntimeError:\n    pass": True,
    "try:\n    x.cuda()\nexcept CudaError:\n    y = 1": True,
    "with contextlib.suppress(Exception):\n    y = x.cuda()": True,
    "try:\n    x.cuda()\nexcept RuntimeError:\n    pass": False,
    "with contextlib.suppress(Exception):\n    x.cuda()": False,
    "with pytest.raises((ValueError, RuntimeError)):\n    x.cuda()": True,
    "x.cuda()": False,
    "with torch.no_grad():\n    x.cuda()": False,
    "with pytest.raises(ValueError):\n    x.cuda()": False,
    "try:\n    x.cuda()\nexcept KeyError:\n    pass": False,
    "try:\n    x.cuda()\nfinally:\n    done()": False,
    "try:\n    x.cuda()\nexcept RuntimeError:\n    raise ValueError('no GPU')": False,
    "try:\n    x.cuda()\nexcept Exception:\n    sys.exit(1)": False,
    "try:\n    x.cuda()\nexcept RuntimeError as e:\n"
    "    if 'out of memory' in str(e):\n        skip()": False,
    "try:\n    y()\nexcept RuntimeError:\n    x.cuda()": False,
    "try:\n    y()\nexcept RuntimeError:\n    z()\nelse:\n    x.cuda()": False,
    "try:\n    def f():\n        x.cuda()\nexcept RuntimeError:\n    pass": False,
}


@pytest.mark.parametrize(("program", "answer"), QUESTIONS.items())
def test_is_question(program, answer) -> None:
    module = module_of(program + "\n")
    (node,) = [node for node in module.all(ast.Attribute) if node.attr == "cuda"]
    assert is_question(module, node) is answer


SHOWN = {
    "x = torch.ones(1)\nx.to(0)": True,
    "def f(x: torch.Tensor):\n    x.to(0)": True,
    "def f(x: 'nn.Module'):\n    x.to(0)": True,
    "x.to(0)\nx.load_state_dict(s)": True,
    "a.x.to(0)\na.x.parameters()": True,
    "x.to(0)\ny = torch.cat(x)": True,
    "def f(x):\n    x.to(0)\n    x.backward()": True,
    "class A:\n    def f(self):\n        self.x = torch.ones(1).half()\n"
    "        self.x = load()\n    def g(self):\n        self.x.to(0)": True,
    "class A:\n    def f(self):\n        self.x.to(0)\n"
    "class B:\n    def f(self):\n        self.x.detach()": False,
    "tokens(text, return_tensors='pt').to(0)": True,
    "def f(x):\n    x.to(0)": False,
    "def f(x: Arm):\n    x.to(0)": False,
    "a.x.to(0)\nb.x.parameters()": False,
    "x.to(0)\nx.parameters": False,
    "x.to(0)\ntorch.save(x, p)": False,
    "tokens(text, return_tensors='np').to(0)": False,
}


@pytest.mark.parametrize(("program", "answer"), SHOWN.items())
def test_is_shown(program, answer) -> None:
    names = "" if program.startswith(("x = ", "def", "class")) else "x, a, b = get()\n"
    module = module_of(f"import torch\nfrom torch import nn\n{names}{program}\n")
    (node,) = [node for node in module.all(ast.Attribute) if node.attr == "to"]
    assert is_shown(module, node.value) is answer

"""The rules about names of devices as data: ACC002 to ACC006."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

_T = "import torch\n"
_A = "import torch\nimport accel\n"

_ARGUMENT = Rule(
    id="ACC002",
    name="device-argument",
    title="A name 'cuda' where a call takes a device",
    why="The name reaches NVIDIA devices only. Where tensors are made or moved on the spot it "
    "becomes `accel.device(...)`; for other calls a string stays a string, of the device that is "
    "there.",
    ascend="A static 'npu' would stop the program on CUDA and on a CPU.",
    action="convert",
    effort="auto",
    examples=(
        Example(
            _T + "\nx = torch.ones(2).to('cuda')\ny = torch.zeros(2, device='cuda:1')\n",
            _A + "\nx = torch.ones(2).to(accel.device())\n"
            "y = torch.zeros(2, device=accel.device(1))\n",
        ),
        Example(
            _T + "\nx = x.to('cuda', torch.half)\nm.to(device='cuda', non_blocking=True)\n",
            _A + "\nx = x.to(accel.device(), torch.half)\n"
            "m.to(device=accel.device(), non_blocking=True)\n",
        ),
        Example(
            _T + "\ntorch.set_default_device('cuda')\nnet = build(device='cuda', depth=3)\n",
            _A + "\ntorch.set_default_device(accel.default_device_type())\n"
            "net = build(device=accel.default_device_type(), depth=3)\n",
        ),
        Example(
            "from transformers import AutoModel\n\n"
            "m = AutoModel.from_pretrained('bert', device_map='cuda')\n",
            "from transformers import AutoModel\nimport accel\n\n"
            "m = AutoModel.from_pretrained('bert', device_map=accel.default_device_type())\n",
        ),
    ),
    kept=(
        _T + "\nclass Path2:\n    def to(self, place):\n        return place\n\np = Path2()\n"
        "p.to('cuda')\n",
        "import xgboost\n\nmodel = xgboost.XGBClassifier(device='cuda')\n",
        "import faster_whisper\n\nm = faster_whisper.WhisperModel('base', device='cuda')\n",
        "import pathlib\n\npathlib.Path('cuda').joinpath('cuda')\n",
        _T + "\nprint('cuda')\n",
        _T + "\nopen('cuda')\n",
        _T + "\n'cuda'\n",
        _T + "\nraise ValueError('cuda')\n",
        _T + "\nx = load('cuda')\n",
        _T + "\nx = torch.ones(2).to('cudart')\n",
        _T + "\nh = connect(host='cuda-node1', url='tcp://cuda:23456')\n",
        "import os\n\np = os.path.join('runs', 'cuda')\n",
        _T + "\nops = compile_op(backend='cuda')\n",
        _T + "\nsetattr(module, 'cuda', None)\n",
        _T + "from torch.utils.cpp_extension import include_paths\n\n"
        "dirs = include_paths(device_type='cuda')\n",
        _T + "from lib import maybe_autocast\n\nwith maybe_autocast(device_type='cuda'):\n"
        "    y = x @ x\n",
        "import onnxruntime\n" + _T + "\nio = onnxruntime.InferenceSession(p).io_binding()\n"
        "io.bind_input(name='x', device_type='cuda', device_id=0)\n",
        _T + "\nclass skipOn(skipIf):\n    def __init__(self, dep):\n"
        "        super().__init__(dep, device_type='cuda')\n",
        "import requests\n" + _T + "\nrequests.post(url, json={'device': 'cuda', 'model': 'x'})\n",
        _T + "\ntry:\n    x = torch.ones(1, device='cuda')\nexcept RuntimeError:\n    x = None\n",
    ),
)
_VARIABLE = Rule(
    id="ACC003",
    name="device-variable",
    title="A name 'cuda' in a variable, default, field or option's default",
    why="What the string is for is seen from where it goes: only one that ends in devices is "
    "changed. It stays a string, and one without a number stays without: it follows "
    "`set_device`.",
    ascend="Give `--device npu` on the command line where the program has such an option; `cuda` "
    "names nothing there.",
    action="convert",
    effort="auto",
    examples=(
        Example(
            _T + "\ndef plan(device_type):\n    return torch.empty(1, device=device_type)\n\n"
            "shard = plan(device_type='cuda')\n",
            _A + "\ndef plan(device_type):\n    return torch.empty(1, device=device_type)\n\n"
            "shard = plan(device_type=accel.default_device_type())\n",
        ),
        Example(
            _T + "\ndef f(x, device='cuda'):\n    return x.to(device)\n",
            _A + "\ndef f(x, device=accel.default_device_type()):\n    return x.to(device)\n",
        ),
        Example(
            "import argparse\n" + _T + "\nparser = argparse.ArgumentParser()\n"
            "parser.add_argument('--device', default='cuda:0', help='cuda or cpu')\n"
            "args = parser.parse_args()\nx = torch.ones(2).to(args.device)\n",
            "import argparse\n" + _A + "\nparser = argparse.ArgumentParser()\n"
            "parser.add_argument('--device', default=accel.device_str(0), help='cuda or cpu')\n"
            "args = parser.parse_args()\nx = torch.ones(2).to(args.device)\n",
        ),
        Example(
            "from dataclasses import dataclass\n" + _T + "\n@dataclass\nclass Config:\n"
            "    device: str = 'cuda'\n    dtype: str = 'half'\n",
            "from dataclasses import dataclass\n" + _A + "\n@dataclass\nclass Config:\n"
            "    device: str = accel.default_device_type()\n    dtype: str = 'half'\n",
        ),
        Example(
            _T + "\nuse = input()\nif use:\n    place = 'cuda'\nelse:\n    place = 'cpu'\n"
            "net = torch.nn.Linear(1, 1).to(place)\n",
            _A + "\nuse = input()\nif use:\n    place = accel.default_device_type()\nelse:\n"
            "    place = 'cpu'\nnet = torch.nn.Linear(1, 1).to(place)\n",
        ),
        Example(
            _T + "\nfor name in ['cpu', 'cuda']:\n    torch.ones(2, device=name)\n",
            _A + "\nfor name in ['cpu', accel.default_device_type()]:\n"
            "    torch.ones(2, device=name)\n",
        ),
        Example(
            _T + "\ndevices = ['cuda:0', 'cuda:1']\na = torch.ones(1).to(devices[0])\n",
            _A + "\ndevices = [accel.device_str(0), accel.device_str(1)]\n"
            "a = torch.ones(1).to(devices[0])\n",
        ),
        Example(
            _T + "\nclass Trainer:\n    def __init__(self):\n        self.place = 'cuda'\n\n"
            "    def put(self, x):\n        return x.to(self.place)\n",
            _A + "\nclass Trainer:\n    def __init__(self):\n"
            "        self.place = accel.default_device_type()\n\n"
            "    def put(self, x):\n        return x.to(self.place)\n",
        ),
        Example(
            _T + "\ndef put(x, where):\n    return x.to(where)\n\nput(torch.ones(1), 'cuda')\n"
            "put(torch.ones(1), where='cuda:2')\n",
            _A + "\ndef put(x, where):\n    return x.to(where)\n\n"
            "put(torch.ones(1), accel.default_device_type())\n"
            "put(torch.ones(1), where=accel.device_str(2))\n",
        ),
    ),
    kept=(
        "import argparse\nimport torch\n\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--cuda', dest='cuda', action='store_true', help='use cuda')\n"
        "args = parser.parse_args()\nif args.cuda:\n    print(1)\n",
        "import argparse\nimport torch\n\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--impl', default='cuda', choices=['ref', 'cuda'])\n"
        "args = parser.parse_args()\nif args.impl == 'ref':\n    print(1)\n",
        _T + "\ndef conv(x, impl='cuda'):\n    assert impl in ['ref', 'cuda']\n    return x\n",
        _T + "\nTABLE = {'cuda': 1, 'cpu': 2}\nprint(TABLE['cuda'])\n",
        _T + "\nbackend = 'cuda'\nif backend == 'numpy':\n    print(1)\n",
        _T + "\nfolder = 'cuda'\nopen(folder + '/x')\n",
        _T + "\nlabel = 'cuda'\nprint(f'on {label}')\n",
        _T + "\nname = 'cuda'\nregister(name)\n",
        _T + "\nkind = 'cuda'\nrun(kind)\nx = torch.ones(1)\n",
        _T + "\nmode = 'cuda'\nif mode == 'fast':\n    print(2)\n",
        _T + "\nwhere = 'cuda'\nx = torch.ones(2).to(where)\nsearch(where)\n",
        _T + "\ncolumns = ['cuda', 'cpu', 'wall']\nwrite(columns)\n",
        _T + "\nrow = dict(cuda='cuda')\n",
        _T + "\ndef f():\n    return 'cuda'\n",
        _T + "\nx: 'cuda' = 1\n",
        _T + "\n__all__ = ['cuda']\n",
        _T + "\nlang = 'cuda'\nhighlight(code, lang)\n",
        _T + "from boosting import train\n\nparams = {'device': 'cuda'}\ntrain(params)\n",
        "import json\n" + _T + "\njson.dumps({'jobs': [{'device': 'cuda'}]})\n",
        "import sys\n\nif 'cuda' in sys.argv:\n    print(1)\n",
        "import logging\n\nlogging.info('cuda')\n",
        "import pytest\n\n@pytest.mark.cuda\ndef test():\n    pass\n",
        _T + "\nassert flag, 'cuda'\n",
    ),
)
_OBJECT = Rule(
    id="ACC004",
    name="torch-device",
    title="A torch.device('cuda')",
    why="`torch.device('cuda', n)` and `torch.device('cuda:n')` become `accel.device(n)`. One "
    "without a number means the current device whenever it is used, also after `set_device`; so "
    "it stays `torch.device(...)` of the type alone, unless it is used on the spot.",
    ascend="`accel.device(n)` is `npu:n`.",
    action="convert",
    effort="auto",
    examples=(
        Example(
            _T + "\ndevice = torch.device('cuda', rank)\nother = torch.device('cuda:1')\n",
            _A + "\ndevice = accel.device(rank)\nother = accel.device(1)\n",
        ),
        Example(
            _T + "\ndevice = torch.device('cuda')\nx = x.to(torch.device('cuda'))\n",
            _A + "\ndevice = torch.device(accel.default_device_type())\nx = x.to(accel.device())\n",
        ),
        Example(
            "import torch\nfrom torch import device\n\nd = device(type='cuda', index=2)\n",
            "import torch\nimport accel\nfrom torch import device\n\nd = accel.device(2)\n",
        ),
    ),
    kept=(
        _T + "\nd = torch.device('cpu')\n",
        _T + "\ndef f(torch):\n    return torch.device('cuda')\n",
        _T + "\nd = torch.device(name)\n",
        "from hardware import device\n\ndevice('cuda:0')\n",
        _T + "\nd = torch.device(*parts)\n",
    ),
)
_BUILT = Rule(
    id="ACC005",
    name="device-name-built",
    title="Names of devices put together, as f'cuda:{n}'",
    why="`accel.device_str(n)` gives the same text on CUDA and the name of the device that is "
    "there elsewhere. What is not known to be an integer is made one, since the text did not "
    "care.",
    ascend="It is `npu:n`.",
    action="convert",
    effort="auto",
    examples=(
        Example(
            _T + "\ndef main(rank: int):\n    device = f'cuda:{rank}'\n"
            "    x = torch.ones(1).to('cuda:%d' % rank)\n    y = torch.ones(1, device=device)\n",
            _A + "\ndef main(rank: int):\n    device = accel.device_str(rank)\n"
            "    x = torch.ones(1).to(accel.device(rank))\n    y = torch.ones(1, device=device)\n",
        ),
        Example(
            "import os\n" + _T + "\nd = torch.device('cuda:' + os.environ['LOCAL_RANK'])\n"
            "x.to('cuda:{}'.format(int(os.environ['RANK']) % 8))\n",
            "import os\n" + _A + "\nd = accel.device(int(os.environ['LOCAL_RANK']))\n"
            "x.to(accel.device(int(os.environ['RANK']) % 8))\n",
        ),
        Example(
            _T + "\nfor i in range(2):\n    x = torch.ones(1).to('cuda:' + str(i))\n",
            _A + "\nfor i in range(2):\n    x = torch.ones(1).to(accel.device(i))\n",
        ),
    ),
    kept=(
        _T + "\nprint(f'cuda:{rank}')\n",
        _T + "\npath = f'cuda:{rank}'\nopen(path)\n",
        _T + "\nurl = 'cuda:%d/%s' % (port, name)\nconnect(url)\n",
        _T + "\nkey = f'cuda_{i}'\ntable[key] = 1\n",
        _T + "\nlog.info('cuda:{}'.format(free))\n",
        _T + "\nx = f'{a}cuda:{b}'\n",
        _T + "\nd[f'cuda:{i}'] = 1\n",
        _T + "\nmessage = 'cuda: %s' % error\nprint(message)\n",
    ),
)
_CHOICE = Rule(
    id="ACC006",
    name="cuda-or-cpu",
    title="The choice 'cuda' if torch.cuda.is_available() else 'cpu'",
    why="It asks for the device that is there, which `accel.default_device_type()` is: `cuda` or "
    "`cpu` where it was, `npu` on an Ascend.",
    ascend="It is 'npu'.",
    action="convert",
    effort="auto",
    examples=(
        Example(
            _T + "\ndevice = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n",
            _A + "\ndevice = torch.device(accel.default_device_type())\n",
        ),
        Example(
            _T + "\ndevice = torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')\n"
            "name = 'cuda:1' if torch.cuda.is_available() else 'cpu'\nx = x.to(name)\n",
            _A + "\ndevice = accel.device(0)\nname = accel.device_str(1)\nx = x.to(name)\n",
        ),
        Example(
            _T + "\ndevice = 'cpu' if not torch.cuda.is_available() else 'cuda'\n",
            _A + "\ndevice = accel.default_device_type()\n",
        ),
        Example(
            _T
            + "\nd = torch.device('cuda') if torch.cuda.is_available() else torch.device('cpu')\n"
            "e = torch.device('cuda', 1) if torch.cuda.is_available() else torch.device('cpu')\n",
            _A + "\nd = torch.device(accel.default_device_type())\ne = accel.device(1)\n",
        ),
    ),
    kept=(
        _T + "\nprint('gpu' if flag else 'cpu')\n",
        "import onnxruntime\n\nname = 'cuda' if onnxruntime.get_device() == 'GPU' else 'cpu'\n"
        "run(name)\n",
    ),
)
STRING_RULES = (_ARGUMENT, _VARIABLE, _OBJECT, _BUILT, _CHOICE)

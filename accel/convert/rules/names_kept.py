"""Programs that look bound to CUDA and must come out as they are."""

from __future__ import annotations

_PARSER = "import argparse\n\nparser = argparse.ArgumentParser()\n"

COMMENTS = (
    "x = 1  # cuda:0, then x.cuda() and torch.cuda.synchronize()\n",
    "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# needs CUDA 11 and nccl\nx = 1\n",
    "def f(x):\n    # type: (torch.cuda.FloatTensor) -> None\n    return x\n",
    "# device = torch.device('cuda')\ndevice = None\n",
)

OWN_NAMES = (
    "use_cuda = True\n",
    "cuda = False\nif cuda:\n    print(1)\n",
    "CUDA_LAYERS = 3\nprint(CUDA_LAYERS)\n",
    "def run(use_cuda=False):\n    return use_cuda\n",
    "def run(*, nccl_timeout: int = 3) -> int:\n    return nccl_timeout\n",
    "def cuda_layers():\n    return 1\n\n\ncuda_layers()\n",
    "class CudaTimer:\n    pass\n\n\nCudaTimer()\n",
    "async def nvidia_report():\n    return 1\n",
    "def f():\n    global cuda_count\n    cuda_count = 1\n\n\ncuda_count = 0\n",
    "def f():\n    cuda_n = 0\n\n    def g():\n        nonlocal cuda_n\n        cuda_n += 1\n\n"
    "    return g\n",
    "for cuda_index in range(3):\n    print(cuda_index)\n",
    "try:\n    pass\nexcept ValueError as cuda_error:\n    print(cuda_error)\n",
    "print([cuda_id for cuda_id in range(2)])\n",
    "print((lambda cuda_id: cuda_id)(1))\n",
    "if (cuda_total := 3) > 2:\n    print(cuda_total)\n",
    "def run(use_cuda=False):\n    return use_cuda\n\n\nrun(use_cuda=True)\n",
    "apex = 3\nprint(apex)\n",
    "import numpy as nvidia_np\n\nnvidia_np.zeros(3)\n",
    "__all__ = ['cuda_timer']\n\n\ndef cuda_timer():\n    return 1\n",
    "def f(cuda):\n    return cuda\n\n\nf(cuda=1)\n",
    "match 3:\n    case cuda_value:\n        print(cuda_value)\n",
    "with open('x') as cuda_file:\n    print(cuda_file)\n",
    "del_cuda = 1\ndel del_cuda\n",
    "barracuda = 'fish'\nprint(barracuda)\n",
)

OWN_ATTRIBUTES = (
    "class A:\n    cuda = False\n\n    def f(self):\n        return self.cuda\n",
    "class A:\n    def use_cuda(self):\n        return 1\n\n    def f(self):\n"
    "        return self.use_cuda()\n",
    "class A:\n    def __init__(self, cuda):\n        self.cuda = cuda\n\n"
    "    def f(self):\n        return 1 if self.cuda else 0\n",
    "class Config:\n    cuda_blocks = 3\n\n\ndef f(config):\n    return config.cuda_blocks\n",
    "def setup(options):\n    options.nccl_rings = 3\n\n\ndef read(options):\n"
    "    return options.nccl_rings\n",
    "class Cfg:\n    pass\n\n\ncfg = Cfg()\ncfg.CUDA = True\nif cfg.CUDA:\n    print(1)\n",
    "class A:\n    pass\n\n\na = A()\na.use_cuda = 1\nprint(getattr(a, 'use_cuda'))\n",
    "class A:\n    @property\n    def has_nccl_ring(self):\n        return False\n\n\n"
    "print(A().has_nccl_ring)\n",
)

OPTIONS = (
    _PARSER + "parser.add_argument('--cuda', dest='cuda', action='store_true')\n",
    _PARSER + "parser.add_argument('--no-cuda', action='store_true', help='disables CUDA')\n"
    "args = parser.parse_args()\nargs.cuda = not args.no_cuda\nprint(args.cuda)\n",
    _PARSER + "parser.add_argument('--use_cuda', type=bool)\nopt = parser.parse_args()\n"
    "print(opt.use_cuda)\n",
    _PARSER + "parser.add_argument('--nccl-timeout', type=int, default=3)\n"
    "print(parser.parse_args().nccl_timeout)\n",
    _PARSER + "parser.add_argument('--gpu', metavar='CUDA', help='which cuda device')\n",
    _PARSER
    + "parser.add_argument('--cuda', action='store_true')\nparser.set_defaults(cuda=False)\n",
    _PARSER + "parser.add_argument('--cuda', action='store_true')\n"
    "args = parser.parse_args(['--cuda'])\nprint(vars(args)['cuda_x'] if 0 else 1)\n",
    "import click\n\n\n@click.command()\n@click.option('--use-cuda/--no-cuda', help='use CUDA')\n"
    "def main(use_cuda):\n    print(use_cuda)\n",
    "import optparse\n\nparser = optparse.OptionParser()\n"
    "parser.add_option('--cuda', action='store_true', dest='cuda')\n",
)

DOCSTRINGS = (
    '"""Trains on cuda:0 with nccl."""\n',
    "def f():\n    '''Calls x.cuda() and torch.cuda.synchronize().'''\n",
    'class A:\n    """Needs CUDA.\n\n    >>> torch.device("cuda")\n    """\n',
    "x = 1\n'''cuda notes: torch.device('cuda')'''\n",
    "async def f():\n    r'''CUDA \\d'''\n",
    "__doc__ = 'cuda helpers'\n",
)

TEXTS = (
    "print('cuda')\n",
    "print('device: cuda:0')\n",
    "print(f'{1} cuda devices')\n",
    "import logging\n\nlogging.info('using cuda:%d', 1)\n",
    "import logging\n\nlogger = logging.getLogger('x')\nlogger.warning('no nccl here')\n",
    "raise RuntimeError('CUDA is required')\n",
    "raise SystemExit('cuda')\n",
    "import warnings\n\nwarnings.warn('apex is not installed')\n",
    "assert 1 + 1 == 2, 'cuda'\n",
    "import sys\n\nsys.exit('no CUDA device')\n",
    "import sys\n\nsys.stderr.write('cuda is busy')\n",
    "message = 'cuda'\nprint(message)\n",
    "note = 'cuda:0'\nraise ValueError(note)\n",
    "print('a %s' % 'cuda')\n",
    "print('{} on {}'.format(1, 'cuda'))\n",
    "print(' '.join(['cuda', 'is', 'here']))\n",
    "lines = []\nlines.append('cuda')\nprint(lines)\n",
    "title = 'Speed on CUDA devices'\n",
    "import unittest\n\n\n@unittest.skip('needs cuda')\ndef test():\n    pass\n",
    "import argparse\n\nargparse.ArgumentParser(description='cuda trainer', epilog='nvidia')\n",
    "input('which cuda device?')\n",
    "def f(x: 'torch.cuda.Stream'):\n    return x\n",
    "print('cuda' if 1 else 'cpu')\n",
    "print('cuda ' + 'and ' 'nccl')\n",
)

KEYS = (
    "config = {'use_cuda': True, 'nccl_timeout': 3}\nprint(config['use_cuda'])\n",
    "config = dict(cuda=True)\nprint(config)\n",
    "def f(config):\n    return config['cuda_streams']\n",
    "def f(config):\n    return config.get('use_cuda', False)\n",
    "def f(config):\n    config['cudnn_benchmark'] = 1\n    return config.pop('cudnn_benchmark')\n",
    "def f(config):\n    return 'use_cuda' in config\n",
    "from types import SimpleNamespace\n\nargs = SimpleNamespace(use_cuda=1)\n",
    "def f(state):\n    return state['cuda_rng']\n",
)

PATHS = (
    "path = '/data/cuda_runs/last.pt'\n",
    "path = 'runs\\\\cuda\\\\a.txt'\n",
    "name = 'cuda_result.json'\n",
    "url = 'tcp://cuda-node1:23456'\n",
    "url = 'https://developer.nvidia.com/tools'\n",
    "def f(root):\n    return f'{root}/cuda/weights.pth'\n",
    "import torch\n\nstate = torch.load('/data/cuda_runs/last.pt', map_location='cpu')\n",
    "open('nvidia.log')\n",
    "tag = 'loss/cuda'\n",
)

MODULES = (
    "from .cuda_tools import timer\n\ntimer()\n",
    "import cuda_tools\n\ncuda_tools.run()\n",
    "from tools import cuda_timer as timer\n\ntimer()\n",
    "from tools import timer as cuda_timer\n\ncuda_timer()\n",
)

UNKNOWN = (
    "def f(x):\n    return x.cuda_handle\n",
    "def f(layer):\n    return layer(impl='cuda')\n",
    "def f(node):\n    return str(node['value']).startswith('cuda')\n",
    "names = ['cuda', 'cpu']\n",
    "from anywhere import *\n\nprint(cuda_count)\n",
    "def f(g):\n    return g(cuda_graphs=True)\n",
    "import re\n\nPATTERN = re.compile('cuda:([0-9]+)')\n",
    "nvcc = '/usr/local/cuda/bin/nvcc'\n",
    "import os\n\nos.system('nvidia-smi')\n",
    "code = '__global__ void f() {}  // cuda'\n",
    "table = {'cuda': 1, 'cpu': 2}\n",
    "def f(pt):\n    pt.cuda.synchronize()\n",
    "def f(cuda):\n    return cuda.current_stream()\n",
    "class A:\n    def __init__(self, torch, cuda):\n        self.torch = torch\n"
    "        self.cuda = cuda\n\n    def f(self):\n        self.torch.cuda.empty_cache()\n",
    "def f(read):\n    return read('device: cuda\\namp: true\\n')\n",
    "def f(out):\n    return out == 'no CUDA device found'\n",
    "import re\n\n\ndef f(out):\n    return re.search('CUDA Version: (.*)', out)\n",
)

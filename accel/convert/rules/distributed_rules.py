"""The rules about collectives, as data."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

_DIST = "import torch.distributed as dist\n"
_ADDED = "import torch.distributed as dist\nimport accel\n"
_PARSER = "import argparse\n\nparser = argparse.ArgumentParser()\n"

RULES = (
    Rule(
        id="ACC060",
        name="collective-backend",
        title="The backend of a process group",
        why="NCCL serves NVIDIA's devices only. accel.dist_backend() is nccl on CUDA, the vendor's "
        "own elsewhere, and gloo on a CPU.",
        ascend="hccl. It takes one process per device.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before=_DIST + "\ndist.init_process_group('nccl', init_method='env://')\n",
                after=_ADDED + "\ndist.init_process_group(accel.dist_backend(), "
                "init_method='env://')\n",
                others={
                    "npu": _DIST
                    + "import torch_npu\n"
                    + "\ndist.init_process_group(\"hccl\", init_method='env://')\n"
                },
            ),
            Example(
                before=_DIST + "\ndist.init_process_group(backend='cuda:nccl,cpu:gloo')\n",
                after=_ADDED
                + "\ndist.init_process_group(backend=accel.dist_backend('cuda:nccl,cpu:gloo'))\n",
            ),
            Example(
                before="import torch\nimport torch.distributed as dist\n\n"
                "backend = 'nccl' if torch.cuda.is_available() else 'gloo'\n"
                "dist.init_process_group(backend)\n",
                after="import torch\nimport accel\nimport torch.distributed as dist\n\n"
                "backend = accel.dist_backend()\ndist.init_process_group(backend)\n",
            ),
            Example(
                before=_DIST + "\ngroup = dist.new_group(backend=dist.Backend.NCCL)\n",
                after=_ADDED + "\ngroup = dist.new_group(backend=accel.dist_backend())\n",
            ),
        ),
        kept=(
            _DIST + "\ndist.init_process_group('gloo')\n",
            _DIST + "\ndist.init_process_group('gloo', init_method='tcp://nccl-node1:23456')\n",
            _DIST + "\ndist.init_process_group('gloo', group_name='nccl_ring')\n",
            "print('nccl')\n",
            "packages = ['nvidia-nccl-cu12']\n",
        ),
    ),
    Rule(
        id="ACC061",
        name="collective-option",
        title="The default of an option that chooses the backend",
        why="The option, its name and its choices stay, since users type them; only what is taken "
        "when nobody gives it becomes the backend of the device that is there.",
        ascend="`--dist-backend nccl` on a command line must be left out or made hccl.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before=_PARSER + "parser.add_argument('--dist-backend', default='nccl')\n",
                after=_PARSER.replace("argparse\n", "argparse\nimport accel\n", 1)
                + "parser.add_argument('--dist-backend', default=accel.dist_backend())\n",
            ),
        ),
        kept=(
            _PARSER + "parser.add_argument('--nccl', default='no')\n",
            _PARSER + "parser.add_argument('--library', default='nccl')\n",
        ),
    ),
    Rule(
        id="ACC062",
        name="collective-comparison",
        title="Comparisons with the backend's name",
        why="`backend == 'nccl'` asks whether collectives run on accelerators; on another one the "
        "answer is no, and the program takes the way of a CPU.",
        ascend="True for hccl. What is NCCL's own behind the test needs a look.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before=_DIST + "\nif dist.get_backend() == 'nccl':\n    print(1)\n",
                after=_ADDED + "\nif accel.is_accelerator_backend(dist.get_backend()):\n"
                "    print(1)\n",
            ),
            Example(
                before=_DIST + "\n\ndef f(args):\n    return args.backend != 'nccl'\n",
                after=_ADDED + "\n\ndef f(args):\n"
                "    return not accel.is_accelerator_backend(args.backend)\n",
            ),
        ),
        kept=(
            _DIST + "\nif dist.get_backend() == 'gloo':\n    print(1)\n",
            "def f(library):\n    return library == 'nccl'\n",
            "def f(backend):\n    return backend in ('nccl', 'mpi')\n",
        ),
    ),
    Rule(
        id="ACC063",
        name="collective-availability",
        title="Whether NCCL is there",
        why="is_nccl_available() asks how torch was built; what programs want to know is whether "
        "the accelerator that is there has collectives.",
        ascend="Whether HCCL is there.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before=_DIST + "\nif dist.is_nccl_available():\n    print(1)\n",
                after=_ADDED + "\nif accel.is_accelerator_backend_available():\n    print(1)\n",
            ),
        ),
        kept=(_DIST + "\ndist.is_gloo_available()\n", "def is_nccl_available():\n    return 1\n"),
    ),
    Rule(
        id="ACC064",
        name="nccl-objects",
        title="NCCL's own process group and its options",
        why="ProcessGroupNCCL has options and functions that no other backend has.",
        ascend="torch_npu has ProcessGroupHCCL with options of its own.",
        action="flag",
        effort="rewrite",
        examples=(
            Example(
                before=_DIST + "\noptions = dist.ProcessGroupNCCL.Options()\n",
                after=_DIST + "\noptions = dist.ProcessGroupNCCL.Options()\n",
            ),
        ),
        kept=("class ProcessGroupNCCL:\n    pass\n\n\nProcessGroupNCCL()\n",),
    ),
    Rule(
        id="ACC065",
        name="collective-word",
        title="The backend's name in other places",
        why="Where it cannot be seen that a string reaches a process group, changing it may break "
        "what compares or looks it up.",
        ascend="Where it means the backend, hccl is meant.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="def f(run):\n    return run(library='nccl')\n",
                after="def f(run):\n    return run(library='nccl')\n",
            ),
        ),
        kept=(
            _PARSER + "parser.add_argument('--dist-backend', choices=['nccl', 'gloo'])\n",
            "ports = {'nccl': 1, 'gloo': 2}\n",
            "names = {}\nnames['nccl'] = 1\n",
        ),
    ),
)

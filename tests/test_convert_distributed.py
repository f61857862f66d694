"""The collectives' backend by name: where it is converted, kept and flagged."""

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options

DIST = "import torch\nimport torch.distributed as dist\n"


def body(program: str, **options: str) -> str:
    """The converted program without its imports."""
    result = convert_source((DIST + program).encode(), "a.py", Options(**options))
    assert result.error == ""
    return without_imports(result.after.decode())


def without_imports(program: str) -> str:
    lines = program.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("import ", "from ")))


def flags(program: str) -> set[str]:
    result = convert_source((DIST + program).encode(), "a.py", Options())
    return {f.rule for f in result.findings if f.action == "flag"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("dist.init_process_group('nccl')", "dist.init_process_group(accel.dist_backend())"),
        (
            "torch.distributed.init_process_group(backend='nccl', rank=0)",
            "torch.distributed.init_process_group(backend=accel.dist_backend(), rank=0)",
        ),
        ("dist.new_group([0], None, 'nccl')", "dist.new_group([0], None, accel.dist_backend())"),
        (
            "b = 'nccl'\ndist.init_process_group(b)",
            "b = accel.dist_backend()\ndist.init_process_group(b)",
        ),
        (
            "def f(backend='nccl'):\n    dist.init_process_group(backend)",
            "def f(backend=accel.dist_backend()):\n    dist.init_process_group(backend)",
        ),
        (
            "class A:\n    def __init__(self):\n        self.b = 'nccl'\n\n"
            "    def f(self):\n        dist.init_process_group(self.b)",
            "class A:\n    def __init__(self):\n        self.b = accel.dist_backend()\n\n"
            "    def f(self):\n        dist.init_process_group(self.b)",
        ),
        (
            "mesh = dist.init_device_mesh('cuda', (2,))",
            "mesh = dist.init_device_mesh(accel.default_device_type(), (2,))",
        ),
        ("setup(backend='nccl')", "setup(backend=accel.dist_backend())"),
        (
            "b = 'nccl' if torch.cuda.is_available() else 'gloo'\ndist.init_process_group(b)",
            "b = accel.dist_backend()\ndist.init_process_group(b)",
        ),
        (
            "b = 'gloo' if not torch.cuda.is_available() else 'nccl'\ndist.init_process_group(b)",
            "b = accel.dist_backend()\ndist.init_process_group(b)",
        ),
        (
            "dist.init_process_group(backend='NCCL')",
            "dist.init_process_group(backend=accel.dist_backend())",
        ),
        (
            "dist.init_process_group('gloo' if windows else 'nccl')",
            "dist.init_process_group('gloo' if windows else accel.dist_backend())",
        ),
        (
            "dist.init_process_group('cpu:gloo,cuda:nccl')",
            "dist.init_process_group(accel.dist_backend('cpu:gloo,cuda:nccl'))",
        ),
        (
            "x = dist.get_backend() != 'nccl'",
            "x = not accel.is_accelerator_backend(dist.get_backend())",
        ),
        (
            "x = 'nccl' in dist.get_backend()",
            "x = accel.is_accelerator_backend(dist.get_backend())",
        ),
        (
            "x = dist.get_backend(g) == dist.Backend.NCCL and y",
            "x = accel.is_accelerator_backend(dist.get_backend(g)) and y",
        ),
        ("x = (backend == 'nccl') == y", "x = (accel.is_accelerator_backend(backend)) == y"),
        ("x = backend != 'nccl' != y", "x = backend != 'nccl' != y"),
        (
            "b = 'nccl' if dist.is_nccl_available() else 'gloo'\ndist.init_process_group(b)",
            "b = accel.dist_backend() if accel.is_accelerator_backend_available() else 'gloo'\n"
            "dist.init_process_group(b)",
        ),
    ],
)
def test_a_backend(before, after) -> None:
    assert body(before + "\n") == after + "\n"


@pytest.mark.parametrize(
    "program",
    [
        "ports = {'nccl': 1}\n",
        "run(library='nccl')\n",
        "c = Comm(backend='NCCL')\n",
        "from ray.util import collective\ncollective.init(2, backend='nccl')\n",
        "x = library == 'nccl'\n",
        "x = backend in ('nccl', 'mpi')\n",
        "pg = dist.ProcessGroupNCCL(1)\n",
        "x = backend != 'nccl' != y\n",
        "b = 'nccl'\ndist.init_process_group(b)\nopen(b)\nprint({b: 1})\n",
    ],
)
def test_what_cannot_be_followed_is_flagged(program) -> None:
    assert body(program) == without_imports(program)
    assert flags(program)


@pytest.mark.parametrize(
    "program",
    [
        "print('nccl')\n",
        "dist.init_process_group('gloo')\n",
        "dist.init_process_group('gloo', init_method='tcp://nccl-node1:23456')\n",
        "parser.add_argument('--dist-backend', choices=['nccl', 'gloo'])\n",
        "nccl = 1\n",
        "x = backend in ('nccl', 'hccl', 'xccl')\n",
        "mesh = dist.init_device_mesh('cpu', (2,))\n",
    ],
)
def test_what_names_no_backend_is_kept(program) -> None:
    assert body(program) == program
    assert flags(program) == set()


def test_a_default_of_an_option_converts_alone() -> None:
    program = (
        "parser.add_argument('--backend', default='nccl', choices=['nccl', 'gloo'], help='nccl')\n"
        "args = parser.parse_args()\n"
        "if args.backend == 'nccl':\n    pass\ndist.init_process_group(args.backend)\n"
    )
    assert body(program) == (
        "parser.add_argument('--backend', default=accel.dist_backend(), choices=['nccl', 'gloo'], "
        "help='nccl')\nargs = parser.parse_args()\n"
        "if accel.is_accelerator_backend(args.backend):\n    pass\n"
        "dist.init_process_group(args.backend)\n"
    )


def test_other_targets() -> None:
    program = "dist.init_process_group('nccl')\n"
    assert body(program, target="npu") == 'dist.init_process_group("hccl")\n'
    assert body(program, target="torch") == (
        "dist.init_process_group(torch.distributed.get_default_backend_for_device("
        'torch.accelerator.current_accelerator() or "cpu"))\n'
    )
    assert body("dist.init_process_group('cuda:nccl')\n", target="torch") == (
        "dist.init_process_group('cuda:nccl')\n"
    )


def test_the_other_way_from_ascend() -> None:
    assert body("dist.init_process_group('hccl')\n", source="npu") == (
        "dist.init_process_group(accel.dist_backend())\n"
    )
    assert body("dist.init_process_group('nccl')\n", source="npu") == (
        "dist.init_process_group('nccl')\n"
    )

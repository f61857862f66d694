"""Environment variables: reads and writes of this process convert, others are kept or flagged."""

import os
import subprocess
import sys

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options


def run(program: str, **options: str):
    result = convert_source(("import os\n" + program).encode(), "a.py", Options(**options))
    assert result.error == ""
    lines = result.after.decode().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("import ")), result


VISIBLE = "'CUDA_VISIBLE_DEVICES'"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"os.environ[{VISIBLE}] = '0'", f"accel.setenv({VISIBLE}, '0')"),
        (f"os.environ[{VISIBLE}] = str(gpu)", f"accel.setenv({VISIBLE}, str(gpu))"),
        (f"del os.environ[{VISIBLE}]", f"accel.setenv({VISIBLE}, None)"),
        (f"x = os.environ[{VISIBLE}]", f"x = accel.getenv({VISIBLE})"),
        (f"x = os.environ.get({VISIBLE})", f"x = accel.getenv({VISIBLE})"),
        (f"x = os.getenv({VISIBLE}, '0')", f"x = accel.getenv({VISIBLE}, '0')"),
        (f"x = os.getenv({VISIBLE}, default='')", f"x = accel.getenv({VISIBLE}, default='')"),
        (f"x = {VISIBLE} in os.environ", f"x = accel.getenv({VISIBLE}) is not None"),
        (f"x = not ({VISIBLE} in os.environ)", f"x = not (accel.getenv({VISIBLE}) is not None)"),
        (f"os.environ.pop({VISIBLE}, None)", f"accel.setenv({VISIBLE}, None)"),
        (
            f"os.environ.setdefault({VISIBLE}, '1')",
            f"accel.setenv({VISIBLE}, '1', overwrite=False)",
        ),
        (
            f"os.environ[{VISIBLE}] = (  # why\n    '0'\n)",
            f"accel.setenv({VISIBLE}, (  # why\n    '0'\n))",
        ),
        (f"KEY = {VISIBLE}\nos.environ[KEY] = '0'", f"KEY = {VISIBLE}\naccel.setenv(KEY, '0')"),
    ],
)
def test_plain_access(before, after) -> None:
    converted, result = run(before + "\n")
    assert converted == after + "\n"
    assert {f.action for f in result.findings} <= {"convert", "keep"}


@pytest.mark.parametrize(
    "program",
    [
        f"a = os.environ[{VISIBLE}] = '0'\n",
        f"old = os.environ.pop({VISIBLE})\n",
        f"x = os.environ.setdefault({VISIBLE}, '0')\n",
        f"os.environ.update({{{VISIBLE}: '0'}})\n",
        "env = dict(os.environ, CUDA_VISIBLE_DEVICES='0')\n",
        "env = {}\nenv.update(CUDA_VISIBLE_DEVICES='0')\n",
        f"env = dict(os.environ)\nenv[{VISIBLE}] = '0'\n",
        f"try:\n    x = os.environ[{VISIBLE}]\nexcept KeyError:\n    x = ''\n",
        "os.environ['NCCL_IB_DISABLE'] = '1'\n",
        "os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'\n",
        "home = os.environ.get('CUDA_HOME')\n",
        f"for name in [{VISIBLE}]:\n    os.environ[name] = '0'\n",
    ],
)
def test_other_accesses_are_flagged(program) -> None:
    converted, result = run(program)
    assert converted == program
    assert "flag" in {f.action for f in result.findings}


@pytest.mark.parametrize(
    "program",
    [
        f"print({VISIBLE})\n",
        "os.environ['CUDA_DEVICE_ORDER'] = 'PCI_BUS_ID'\n",
        "x = os.getenv('MYTOOL_CUDA')\n",
        "x = 'MYTOOL_CUDA' in os.environ\n",
    ],
)
def test_harmless_ones_are_kept(program) -> None:
    converted, result = run(program)
    assert converted == program
    assert {f.action for f in result.findings} == {"keep"}


def test_a_dictionary_of_that_name_is_no_environment() -> None:
    program = f"environ = {{}}\nenviron[{VISIBLE}] = '0'\n"
    assert run(program)[0] == program


def test_the_other_way_from_ascend() -> None:
    program = "os.environ['ASCEND_RT_VISIBLE_DEVICES'] = '0'\n"
    assert run(program)[0] == program
    converted = "accel.setenv('ASCEND_RT_VISIBLE_DEVICES', '0')\n"
    assert run(program, source="npu")[0] == converted


def test_the_converted_program_sets_both_before_torch_is_there() -> None:
    program = (
        "import os\nimport sys\n\nos.environ['CUDA_VISIBLE_DEVICES'] = '3'\n\nimport torch\n\n"
        "print(torch.cuda.is_available())\n"
    )
    result = convert_source(program.encode(), "a.py", Options())
    text = result.after.decode().replace(
        "\nimport torch\n",
        "\nassert 'torch' not in sys.modules\nimport torch\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['ASCEND_RT_VISIBLE_DEVICES'])\n",
    )
    environment = {k: v for k, v in os.environ.items() if "VISIBLE_DEVICES" not in k}
    done = subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "3 3"

"""The rules about environment variables, and the variables that are known."""

from __future__ import annotations

import re

from accel.convert.rule import Example, Rule

# What accel.setenv and accel.getenv know, by the platform that a program is bound to.
TWINS = {
    "cuda": frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF"}),
    "npu": frozenset(
        {"ASCEND_RT_VISIBLE_DEVICES", "ASCEND_LAUNCH_BLOCKING", "PYTORCH_NPU_ALLOC_CONF"}
    ),
    "musa": frozenset(),
    "mlu": frozenset(),
}
# Variables of the platforms and of torch, as against those of programs.
PLATFORM = re.compile(
    r"(?:CUDA|NVIDIA|NCCL|CUBLAS|CUDNN|CUFFT|CUPTI|NV|TORCH_NCCL|TORCH_CUDA|TORCH_CUDNN|"
    r"PYTORCH_CUDA|PYTORCH_NVML|PYTORCH_NO_CUDA|ASCEND|HCCL|TORCH_HCCL|TORCH_NPU|PYTORCH_NPU|"
    r"NPU|CANN|MUSA|MCCL|PYTORCH_MUSA|MLU|CNCL|PYTORCH_MLU)_[A-Z0-9_]+"
)
# They order, cache or log; a program computes the same without them.
INERT = frozenset({
    "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "CUDA_CACHE_PATH", "CUDA_CACHE_DISABLE",
    "CUDA_CACHE_MAXSIZE", "NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE",
    "NVIDIA_DRIVER_CAPABILITIES",
})  # fmt: skip
# By prefix, the longest first.
ADVICE = (
    ("NCCL_SOCKET_IFNAME", "Set HCCL_SOCKET_IFNAME to the same interface on Ascend."),
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "Set HCCL_ASYNC_ERROR_HANDLING on Ascend."),
    ("TORCH_NCCL_", "It steers torch's NCCL group; HCCL's group has variables of its own."),
    ("NCCL_ASYNC_ERROR_HANDLING", "Set HCCL_ASYNC_ERROR_HANDLING on Ascend."),
    ("NCCL_", "It tunes NCCL; HCCL has HCCL_* variables, which have to be tuned on Ascend anew."),
    (
        "CUBLAS_WORKSPACE_CONFIG",
        "It makes cuBLAS deterministic and does nothing elsewhere; on Ascend "
        "torch.use_deterministic_algorithms(True) and HCCL_DETERMINISTIC=true serve.",
    ),
    ("NVIDIA_TF32_OVERRIDE", "It changes the precision of products; use accel.allow_tf32(...)."),
    ("CUDA_HOME", "It is where CUDA's toolkit is; Ascend's is ASCEND_TOOLKIT_HOME."),
    ("CUDA_PATH", "It is where CUDA's toolkit is; Ascend's is ASCEND_TOOLKIT_HOME."),
    ("TORCH_CUDA_ARCH_LIST", "It is for building CUDA extensions, which Ascend cannot run."),
)
# What a string must be to be taken for a variable outside of os.environ.
VARIABLES = frozenset().union(INERT, *TWINS.values()) | {"CUDA_HOME", "CUDA_PATH"}
_TOOLKIT = ("CUDA_HOME", "CUDA_PATH")
VARIABLE_PREFIXES = (*(prefix for prefix, _ in ADVICE if prefix not in _TOOLKIT), "HCCL_")

_OS = "import os\n"
_ADDED = "import os\nimport accel\n"

RULES = (
    Rule(
        id="ACC066",
        name="environment-variable",
        title="Environment variables that each vendor names its own way",
        why="CUDA_VISIBLE_DEVICES, CUDA_LAUNCH_BLOCKING and PYTORCH_CUDA_ALLOC_CONF do nothing on "
        "other devices. accel.setenv sets every vendor's name, accel.getenv reads whichever is "
        "set; on CUDA that is what was there.",
        ascend="ASCEND_RT_VISIBLE_DEVICES, ASCEND_LAUNCH_BLOCKING, PYTORCH_NPU_ALLOC_CONF.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before=_OS + "\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'\n",
                after=_ADDED + "\naccel.setenv('CUDA_VISIBLE_DEVICES', '0')\n",
            ),
            Example(
                before=_OS
                + "\ncount = len(os.environ.get('CUDA_VISIBLE_DEVICES', '').split(','))\n",
                after=_ADDED
                + "\ncount = len(accel.getenv('CUDA_VISIBLE_DEVICES', '').split(','))\n",
            ),
            Example(
                before=_OS + "\nos.environ.setdefault('CUDA_LAUNCH_BLOCKING', '1')\n",
                after=_ADDED + "\naccel.setenv('CUDA_LAUNCH_BLOCKING', '1', overwrite=False)\n",
            ),
            Example(
                before=_OS + "\nif 'CUDA_VISIBLE_DEVICES' not in os.environ:\n    print(1)\n",
                after=_ADDED + "\nif accel.getenv('CUDA_VISIBLE_DEVICES') is None:\n    print(1)\n",
            ),
        ),
        kept=(
            _OS + "\nprint(os.environ['HOME'])\n",
            "environ = {}\nenviron['CUDA_VISIBLE_DEVICES'] = '0'\n",
            "print('set CUDA_VISIBLE_DEVICES=0')\n",
            _OS + "\ntry:\n    gpus = os.environ['CUDA_VISIBLE_DEVICES']\n"
            "except KeyError:\n    gpus = ''\n",
            _OS + "\nold = os.environ.pop('CUDA_VISIBLE_DEVICES')\n",
        ),
    ),
    Rule(
        id="ACC067",
        name="platform-variable",
        title="Environment variables of NVIDIA's libraries alone",
        why="They tune or place NVIDIA's libraries. Setting them does no harm elsewhere, and no "
        "good: what they were set for has to be done there in another way.",
        ascend="HCCL_* variables for collectives, ASCEND_TOOLKIT_HOME for the toolkit.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before=_OS + "\nos.environ['NCCL_IB_DISABLE'] = '1'\n",
                after=_OS + "\nos.environ['NCCL_IB_DISABLE'] = '1'\n",
            ),
        ),
        kept=(
            _OS + "\nos.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'\n",
            _OS + "\nhome = os.environ.get('CUDA_HOME', '/usr/local')\n",
            _OS + "\nos.environ['TORCH_NCCL_ASYNC_ERROR_HANDLING'] = '1'\n",
        ),
    ),
    Rule(
        id="ACC068",
        name="environment-of-a-process",
        title="Environment variables for other processes",
        why="A dictionary that becomes another process's environment, or a name that is passed on, "
        "is not this process's environment, which accel.setenv sets.",
        ascend="Set ASCEND_RT_VISIBLE_DEVICES beside CUDA_VISIBLE_DEVICES.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import subprocess\n\n"
                "subprocess.run(['train'], env={'CUDA_VISIBLE_DEVICES': '0'})\n",
                after="import subprocess\n\n"
                "subprocess.run(['train'], env={'CUDA_VISIBLE_DEVICES': '0'})\n",
            ),
        ),
        kept=(
            _OS + "\nenv = os.environ.copy()\nenv['CUDA_VISIBLE_DEVICES'] = '0'\n",
            _OS + "\nos.environ.update({'CUDA_VISIBLE_DEVICES': '0'})\n",
            _OS + "\nenv = dict(os.environ, CUDA_VISIBLE_DEVICES='0')\n",
            "def test(monkeypatch):\n    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')\n",
        ),
    ),
    Rule(
        id="ACC069",
        name="own-variable",
        title="Environment variables of the program's own, and those that change nothing",
        why="A variable that only this program reads keeps its name, and so does one that orders, "
        "caches or logs for CUDA and that other devices ignore.",
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=(
            Example(
                before=_OS + "\nprint(os.getenv('MYTOOL_USE_CUDA', '0'))\n",
                after=_OS + "\nprint(os.getenv('MYTOOL_USE_CUDA', '0'))\n",
            ),
        ),
        kept=(
            _OS + "\nos.environ['CUDA_DEVICE_ORDER'] = 'PCI_BUS_ID'\n",
            _OS + "\nos.environ['TRAINER_CUDA_RUNS'] = '3'\n",
        ),
    ),
)

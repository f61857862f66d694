"""The rules ACC120 to ACC139 as data. Their examples are files of the kinds in `EXAMPLE_FILES`."""

from __future__ import annotations

from accel.convert.rule import Example, Rule, unchanged

# What the examples of a rule are: a name that `language_of` knows.
EXAMPLE_FILES = {
    "ACC120": "run.sh",
    "ACC121": "run.sh",
    "ACC122": "run.sh",
    "ACC123": "install.sh",
    "ACC124": "Dockerfile",
    "ACC125": "docker-compose.yml",
    "ACC126": "requirements.txt",
    "ACC127": "config.yaml",
    "ACC128": "notebook.ipynb",
    "ACC130": "kernels.cu",
    "ACC131": "host.cpp",
    "ACC132": "CMakeLists.txt",
    "ACC138": "run.sh",
    "ACC139": "README.md",
}


_CELL = (
    '{"cells": [{"cell_type": "code", "execution_count": null, "metadata": {}, "outputs": [], '
    '"source": ["%%cu\\n", "__global__ void f() {}"]}], "metadata": {}, "nbformat": 4, '
    '"nbformat_minor": 5}\n'
)

RULES = (
    Rule(
        id="ACC120",
        name="script-environment",
        title="Environment variables that only CUDA reads",
        why="Both names are set, so that the script does the same on CUDA. Only assignments that a "
        "command or `export` makes, of values that mean the same on both, are converted.",
        ascend="ASCEND_RT_VISIBLE_DEVICES takes indexes only. NCCL's variables have few twins.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="CUDA_VISIBLE_DEVICES=0,1 python train.py\n",
                after="CUDA_VISIBLE_DEVICES=0,1 ASCEND_RT_VISIBLE_DEVICES=0,1 python train.py\n",
            ),
            Example(
                before="export CUDA_LAUNCH_BLOCKING=1\n",
                after="export CUDA_LAUNCH_BLOCKING=1 ASCEND_LAUNCH_BLOCKING=1\n",
            ),
        ),
        kept=(
            "CUDA_VISIBLE_DEVICES= python on_the_cpu.py\n",
            "CUDA_VISIBLE_DEVICES=GPU-8932f937 python train.py\n",
            "CUDA_VISIBLE_DEVICES=$(pick) python train.py\n",
            "export PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync\n",
            "ASCEND_RT_VISIBLE_DEVICES=0 CUDA_VISIBLE_DEVICES=0 python train.py\n",
            "echo CUDA_VISIBLE_DEVICES=0 python train.py\n",
            "# CUDA_VISIBLE_DEVICES=0 python train.py\n",
            "cat > run <<'END'\nexport CUDA_VISIBLE_DEVICES=0\nEND\n",
            "CUDA_VISIBLE_DEVICES=0  # only here\n",
        ),
    ),
    Rule(
        id="ACC121",
        name="script-tool",
        title="Commands that know NVIDIA devices only",
        why="They are not there on other machines.",
        ascend="npu-smi, msprof, mssanitizer and msdebug do the like.",
        action="flag",
        effort="review",
        examples=unchanged("nvidia-smi -L\n"),
        kept=("python nvidia_report.py\n",),
    ),
    Rule(
        id="ACC122",
        name="script-device",
        title="Device and backend names as arguments of a command",
        why="A converted program passes them to accel.device, which takes every accelerator's name "
        "for the one that is here; whether it does is for a person to see.",
        ascend="The same.",
        action="flag",
        effort="review",
        examples=unchanged("python train.py --device cuda:0 --backend=nccl\n"),
        kept=("python train.py --cuda --no-cuda --out=runs/cuda\n",),
    ),
    Rule(
        id="ACC123",
        name="script-installation",
        title="Commands that install CUDA or packages that need it",
        why="A build of torch for CUDA, or a CUDA library, does nothing elsewhere.",
        ascend="Install the CPU build of torch and torch-npu of the same release, on CANN.",
        action="flag",
        effort="review",
        examples=unchanged("pip install torch==2.6.0+cu124 flash-attn deepspeed\n"),
        kept=("pip install numpy\n",),
    ),
    Rule(
        id="ACC124",
        name="container-image",
        title="Container images with CUDA",
        why="The libraries in them are NVIDIA's.",
        ascend="Images with CANN are the like.",
        action="flag",
        effort="rewrite",
        examples=unchanged("FROM nvidia/cuda:12.4.1-runtime-ubuntu22.04\n"),
        kept=("FROM python:3.12-slim\n",),
    ),
    Rule(
        id="ACC125",
        name="container-runtime",
        title="NVIDIA devices given to a container",
        why="Other devices are given another way.",
        ascend="The Ascend Docker Runtime, or the device files and the driver's directories.",
        action="flag",
        effort="review",
        examples=unchanged("services:\n  train:\n    runtime: nvidia\n"),
    ),
    Rule(
        id="ACC126",
        name="requirement",
        title="Required packages that are bound to CUDA",
        why="They cannot be installed, or do nothing, on other machines.",
        ascend="The advice names what to require there.",
        action="flag",
        effort="review",
        examples=unchanged("numpy\nflash-attn>=2.5\n"),
        kept=("numpy\ntorch\n", "deepspeed\n", "# flash-attn\n"),
    ),
    Rule(
        id="ACC127",
        name="config-device",
        title="Device and backend names in configuration files",
        why="What reads them decides what they mean.",
        ascend="A converted program that passes them to accel.device needs no change here.",
        action="flag",
        effort="review",
        examples=unchanged("train:\n  device: cuda:0\n"),
        kept=("use_cuda: true\n", "name: cuda_run_3  # on cuda\n", "output: /data/cuda/x\n"),
    ),
    Rule(
        id="ACC128",
        name="notebook-cell",
        title="Notebook cells that are not Python",
        why="Python cells are converted like files, and their commands are looked at like scripts; "
        "cells in other languages, and those that do not parse, are kept.",
        ascend="Nothing special.",
        action="flag",
        effort="review",
        examples=unchanged(_CELL.replace("void f()", "void cuda_f()")),
    ),
    Rule(
        id="ACC130",
        name="cuda-kernels",
        title="CUDA kernels",
        why="They run on NVIDIA devices only.",
        ascend="Plain torch, Triton (triton-ascend) or Ascend C can do the same.",
        action="flag",
        effort="rewrite",
        examples=unchanged("__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n"),
    ),
    Rule(
        id="ACC131",
        name="cuda-host-code",
        title="C++ that uses CUDA",
        why="It calls libraries that are not there elsewhere, or names their device.",
        ascend="torch's own C++ interface works on every device.",
        action="flag",
        effort="rewrite",
        examples=unchanged(
            "#include <cuda_runtime.h>\n\nvoid wait() { cudaDeviceSynchronize(); }\n"
        ),
        kept=("// as fast as cuda\nint f() { return 1; }\n",),
    ),
    Rule(
        id="ACC132",
        name="cuda-build",
        title="Build files that build for CUDA",
        why="Their outputs are for NVIDIA devices.",
        ascend="The sources need a build of their own, or a plain torch version.",
        action="flag",
        effort="rewrite",
        examples=unchanged("project(kernels LANGUAGES CXX CUDA)\n"),
        kept=("# without cuda\nproject(kernels LANGUAGES CXX)\n",),
    ),
    Rule(
        id="ACC138",
        name="other-text",
        title="What nobody can class",
        why="It stands where its meaning cannot be told: in a text that a script writes, or in a "
        "script that cannot be split into commands.",
        ascend="Nothing special.",
        action="flag",
        effort="review",
        examples=unchanged("python - <<'END'\nimport torch\ntorch.cuda.synchronize()\nEND\n"),
    ),
    Rule(
        id="ACC139",
        name="kept-text",
        title="Text that is kept",
        why="Comments, documents, outputs, paths and a project's own names are never changed.",
        ascend="Nothing special.",
        action="keep",
        effort="auto",
        examples=unchanged("Runs on CUDA 12.\n"),
    ),
)

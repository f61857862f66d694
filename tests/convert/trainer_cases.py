"""The trainers beside this file: how each is run, and what of CUDA stays after its conversion."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path

from accel.convert.engine import convert_source
from accel.convert.finding import FileResult
from accel.convert.options import Options, TargetName
from accel.convert.project import index

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_name("trainers")
_LOSS = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-]\d+")
_DEVICE_NAMES = {"cuda", "is_cuda", "CUDA", "nvtx"}
_DEVICE_TEXT = re.compile(r"(cuda|cuda:.*|nccl|torch\.cuda\..*)")
# Of a run that is itself on a simulated Ascend.
_SIMULATION = ("ACCEL_SIMULATE", "ACCEL_SIMULATE_PARTS", "ASCEND_HOME_PATH", "TASK_QUEUE_ENABLE")


@dataclass(frozen=True)
class Trainer:
    """One of them.

    Attributes:
        name: Of its file.
        guarded: Whether it runs as it is where there is no CUDA.
        on_cpu: Arguments with which the original is asked to use the CPU.
        in_float32: Arguments that leave mixed precision out.
        ranks: How many processes it needs; 0 for one without a group.
        left: What names CUDA in the converted program, and is right to.
        refused: What in it no Ascend can do, and is flagged for a human; "" if nothing.
    """

    name: str
    guarded: bool = False
    on_cpu: tuple[str, ...] = ()
    in_float32: tuple[str, ...] = ()
    ranks: int = 0
    left: frozenset[str] = frozenset()
    refused: str = ""

    @property
    def path(self) -> Path:
        """Its file."""
        return FOLDER / f"{self.name}.py"

    def converted(self, target: TargetName = "accel") -> FileResult:
        """What the converter makes of it, as of a tree that holds it alone."""
        return convert(self.path.read_bytes(), self.path.name, target)

    def write(self, directory: Path, target: TargetName = "accel") -> str:
        """Convert it into a directory; its file there."""
        file = directory / self.path.name
        file.write_bytes(self.converted(target).after)
        return str(file)


TRAINERS = (
    # `cu = th.cuda` stays, and nothing uses it.
    Trainer("alias_imports", in_float32=("--fp32",), left=frozenset({"th.cuda"})),
    Trainer("amp_old", in_float32=("--fp32",)),
    Trainer("bench_profile"),
    # It takes its device from the command line, and asks for CUDA if it is not told. A fused
    # optimizer remains a choice that is made for CUDA alone.
    Trainer(
        "char_gpt",
        on_cpu=("device=cpu",),
        in_float32=("dtype=float32",),
        left=frozenset({"cuda"}),
    ),
    Trainer("ddp_launch", ranks=2),
    Trainer("detector_losses", guarded=True),
    Trainer("diffusion"),
    Trainer("digits_args", guarded=True),
    # What it prints of its device is for people, and flagged.
    Trainer("dqn_agent", guarded=True, left=frozenset({"cuda:%d"})),
    Trainer("env_first", guarded=True),
    Trainer("gan_aliases", guarded=True),
    Trainer("gpu_id_trainer"),
    Trainer("imagenet_gpu"),
    # DataParallel knows CUDA alone, so that its guard must stay CUDA's.
    Trainer("parallel_guard", guarded=True, left=frozenset({"cuda", "torch.cuda.device_count"})),
    Trainer("prefetcher"),
    # The key of a dictionary, which other programs may read.
    Trainer("reproducible", left=frozenset({"cuda"})),
    Trainer("resume"),
    Trainer("word_lm", guarded=True),
    # The key of a table of names, and a branch that has one for Apple's chips beside it.
    Trainer("any_backend", guarded=True, left=frozenset({"cuda"})),
    Trainer("graph_net", guarded=True),
    Trainer(
        "nerf_default_type",
        guarded=True,
        left=frozenset({"torch.cuda.FloatTensor"}),
        refused="set_default_tensor_type",
    ),
    Trainer("old_torch_fallback", in_float32=("fp32",)),
    Trainer("ppo_prints", guarded=True),
    # A name of CUDA's that users may type is taken apart, which is flagged.
    Trainer("select_device", guarded=True, left=frozenset({"cuda:"})),
    Trainer("speech_masks"),
    Trainer("two_stages"),
)


def convert(data: bytes, name: str, target: TargetName = "accel") -> FileResult:
    """Convert one file as `accel convert` does."""
    return convert_source(data, name, Options(target), index({name: data}))


def losses(output: str) -> list[float]:
    """The numbers that a trainer printed in hexadecimal, to the bit."""
    return [float.fromhex(found) for found in _LOSS.findall(output)]


def left_of_cuda(source: str) -> set[str]:
    """What a program names of CUDA, by its syntax tree: attributes, imports and device strings."""
    found: set[str] = set()
    inner: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            part: ast.expr = node
            chain = []
            while isinstance(part, ast.Attribute):
                chain.append(part.attr)
                inner.add(id(part))
                part = part.value
            name = ast.unparse(node)
            if _DEVICE_NAMES & set(chain) and name != "args.cuda":  # a program's own option
                found.add(name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if _DEVICE_TEXT.fullmatch(node.value):
                found.add(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and "cuda" in ast.unparse(node):
            found.add(ast.unparse(node))
    return found


def plain_environment() -> dict[str, str]:
    """This process's environment with this project, and without a simulated Ascend."""
    kept = {name: value for name, value in os.environ.items() if name not in _SIMULATION}
    places = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**kept, "PYTHONPATH": places, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

"""nanoGPT and minGPT, converted and trained: on a CPU before and after, then on a simulated Ascend.

    python benchmarks/convert_public.py NANOGPT MINGPT

Each argument is a checkout; it is copied, and nothing of it is kept. Three runs of each, some steps
of a small model on made-up data, with dropout off, since each device draws its own numbers:

1. the original with its device forced to the CPU, by its own option;
2. the converted program on the CPU, without that option: its losses must be the same to the bit;
3. the converted program on a simulated Ascend, in float32.

Losses are taken where `backward` is called on them, so that nothing is rounded by what is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import numpy

from accel.convert.finding import TreeResult
from accel.convert.options import Options
from accel.convert.tree import convert_tree
from accel.simulate.activation import child_environment
from accel.simulate.machine import Machine

ROOT = Path(__file__).parents[1]
STEPS = 8
# Runs a program as `__main__` and writes every loss, to the bit.
DRIVER = """
import json, runpy, sys
import torch
output, *sys.argv = sys.argv[1:]
losses, places, backward = [], set(), torch.autograd.backward
def noted(loss, *arguments, **keywords):
    losses.append(loss.item().hex())
    places.add(loss.device.type)
    return backward(loss, *arguments, **keywords)
torch.autograd.backward = noted
runpy.run_path(sys.argv[0], run_name="__main__")
with open(output, "w") as file:
    json.dump({"losses": losses, "devices": sorted(places)}, file)
"""


@dataclass(frozen=True)
class Program:
    """How one of them is trained.

    Attributes:
        script: In the checkout.
        arguments: For all runs.
        on_cpu: Those that force its device, if it has no guard of its own.
    """

    script: str
    arguments: tuple[str, ...]
    on_cpu: tuple[str, ...] = ()


PROGRAMS = {
    "nanoGPT": Program(
        "train.py",
        (
            "--dataset=made_up", "--compile=False", "--eval_iters=2", "--log_interval=1",
            "--block_size=32", "--batch_size=4", "--n_layer=2", "--n_head=4", "--n_embd=64",
            "--dropout=0.0", f"--max_iters={STEPS}", f"--lr_decay_iters={STEPS}",
            "--warmup_iters=2", "--gradient_accumulation_steps=2", "--dtype=float32",
        ),
        ("--device=cpu",),
    ),
    "minGPT": Program(
        "projects/adder/adder.py",
        (
            f"--trainer.max_iters={STEPS}", "--trainer.num_workers=0", "--model.embd_pdrop=0.0",
            "--model.resid_pdrop=0.0", "--model.attn_pdrop=0.0",
        ),
    ),
}  # fmt: skip


def make_data(checkout: Path) -> None:
    """Characters for nanoGPT, in the form that its training reads."""
    folder = checkout / "data" / "made_up"
    folder.mkdir(parents=True)
    text = numpy.random.default_rng(0).integers(0, 50, 4096).astype(numpy.uint16)
    text[1::2] = text[::2] // 2  # half of them can be learned
    for name in ("train.bin", "val.bin"):
        text.tofile(folder / name)


def train(program: Program, checkout: Path, *extra: str, simulate: bool = False) -> dict[str, Any]:
    """Run it, and say what it computed where."""
    output = checkout.parent / "losses.json"
    output.unlink(missing_ok=True)
    places = [str(ROOT), str(ROOT / "kernels"), str(checkout)]
    simulated = child_environment(Machine()) if simulate else {}
    if simulated:
        places.insert(0, simulated.pop("PYTHONPATH"))
    command = [sys.executable, "-c", DRIVER, str(output), program.script]
    run = subprocess.run(
        [*command, *program.arguments, *extra],
        env={
            **os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1",
            **simulated, "PYTHONPATH": os.pathsep.join(places),
        },
        cwd=checkout, capture_output=True, text=True,
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(f"{program.script} failed:\n{run.stdout[-2000:]}{run.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def convert(checkout: Path) -> TreeResult:
    """Convert a tree in place."""
    tree = convert_tree([checkout], Options())
    for file in tree.files:
        if file.is_changed:
            (checkout / file.path).write_bytes(file.after)
    return tree


def counts(tree: TreeResult) -> dict[str, Any]:
    """What the converter said."""
    actions = Counter(entry.action for file in tree.files for entry in file.ledger)
    return {
        "files": len(tree.files),
        "changed_files": [file.path for file in tree.files if file.is_changed],
        "tokens": dict(actions),
        "flagged": [
            f"{file.path}:{f.line}: {f.rule}: {f.message}"
            for file in tree.files
            for f in file.findings
            if f.action == "flag"
        ],
    }


def apart(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference of two runs' losses."""
    pairs = zip(first["losses"], second["losses"], strict=True)
    return max(abs(float.fromhex(a) - float.fromhex(b)) for a, b in pairs)


def measured(name: str, original: Path) -> dict[str, Any]:
    """The three runs of one program."""
    program = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as directory:
        before, after = Path(directory, "before", name), Path(directory, "after", name)
        shutil.copytree(original, before, ignore=shutil.ignore_patterns(".git"))
        if name == "nanoGPT":
            make_data(before)
        shutil.copytree(before, after)
        tree = convert(after)
        again = convert_tree([after], Options())
        cpu = train(program, before, *program.on_cpu)
        converted = train(program, after)
        ascend = train(program, after, simulate=True)
    return {
        "command": " ".join(["python", program.script, *program.arguments]),
        "losses_on_cpu": [float.fromhex(loss) for loss in cpu["losses"]],
        "cpu_losses_equal_to_the_bit": cpu["losses"] == converted["losses"],
        "simulated_ascend_apart_from_cpu": apart(cpu, ascend),
        "devices": [run["devices"] for run in (cpu, converted, ascend)],
        "changed_again_by_a_second_run": [f.path for f in again.files if f.is_changed],
        **counts(tree),
    }


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in PROGRAMS:
        parser.add_argument(name, type=Path, help="a checkout of karpathy/" + name)
    arguments = parser.parse_args()
    programs = {}
    for name in PROGRAMS:
        programs[name] = found = measured(name, getattr(arguments, name))
        print(
            f"{name}: tokens {found['tokens']}, CPU losses equal "
            f"{found['cpu_losses_equal_to_the_bit']}, simulated Ascend apart "
            f"{found['simulated_ascend_apart_from_cpu']:.3g}",
            flush=True,
        )
    # Where the checkouts are on this machine is of no use to a reader.
    sys.argv[1:] = list(PROGRAMS)
    print(environment.write("convert_public", {"steps": STEPS, "programs": programs}))
    return int(not all(found["cpu_losses_equal_to_the_bit"] for found in programs.values()))


if __name__ == "__main__":
    sys.exit(main())

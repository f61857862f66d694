"""Find functions by what their docstrings say, and docstrings by the code, in a minute on a CPU.

Both encoders are bags of hashed words and share the words: an identifier and the English word that
it is made of begin as the same. What that alone finds, the untrained model shows.

    python examples/align_code.py
    python examples/align_code.py --find "split a string at white space"
"""

import argparse
import time

import code_pairs
import torch
from alignment_parts import optimizer_of, print_figures
from character_encoders import TextEncoder
from code_pairs import Functions
from torch import Tensor

import accel
from accel import alignment

WIDTH, BUCKETS, HELD_OUT = 256, 32768, 0.15
Data = dict[str, Tensor]


def encoders_of_functions(dropout: float) -> dict[str, torch.nn.Module]:
    """Two bags with one table of words; what becomes of the words is each one's own."""
    code, text = (TextEncoder(BUCKETS, WIDTH, dropout) for _ in range(2))
    text.bag = code.bag
    return {"code": code, "text": text}


def train(
    aligner: alignment.Aligner, data: Data, groups: Tensor, options: argparse.Namespace
) -> None:
    """Train on these functions; those with one docstring are positives of each other."""
    device = accel.current_device()
    optimizer, schedule = optimizer_of(aligner, options.learning_rate, options.steps)
    precision = accel.precision.Precision(aligner, "compute=float32")
    generator = torch.Generator().manual_seed(options.seed)
    with accel.report.Progress(options.steps, "train", unit="step") as bar:
        for _ in range(options.steps):
            chosen = torch.randperm(len(groups), generator=generator)[: options.batch]
            batch = device.move({name: one[chosen] for name, one in data.items()})
            with precision.autocast():
                output = aligner(batch, groups=device.move(groups[chosen]))
            precision.backward(output.loss)
            precision.step(optimizer)
            schedule.step()
            optimizer.zero_grad()
            bar.advance(1, f"loss {output.loss.item():.3f}")


@torch.no_grad()
def measure(
    aligner: alignment.Aligner, data: Data, groups: Tensor, is_trained: bool = True
) -> alignment.TrainingReport:
    """Recall among these functions; any function with the same docstring is right."""
    device = accel.current_device()
    aligner.eval()
    embeddings = {name: aligner.encode(name, device.move(one)) for name, one in data.items()}
    aligner.train()
    trained = aligner.pairs if is_trained else ()
    found = alignment.retrieve_all_pairs(embeddings, trained=trained, groups=groups)
    return alignment.TrainingReport(
        "Code and docstrings", embeddings, groups=groups, retrieval=found
    )


def nearest_functions(
    aligner: alignment.Aligner,
    functions: Functions,
    unseen: Tensor,
    report: alignment.TrainingReport,
    query: str,
) -> list[str]:
    """The names of the unseen functions that a description is nearest to."""
    words = accel.current_device().move(code_pairs.hashed_words([query], BUCKETS))
    with torch.no_grad():
        asked = aligner.eval().encode("text", words)
    _, order = alignment.nearest(asked, report.embeddings["code"], k=5)
    return [functions.names[unseen[place]] for place in order[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512, help="functions per step")
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, batches and held-out modules"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--dropout", type=float, default=0.3, help="of words")
    parser.add_argument("--find", help="a description: which unseen functions are like it")
    options = parser.parse_args()
    if min(options.steps, options.batch) < 1:
        parser.error("--steps and --batch must be at least 1")

    begun, device = time.process_time(), accel.current_device()
    functions = code_pairs.read_functions()
    rows, unseen = code_pairs.split(functions.modules, HELD_OUT, options.seed)
    data = {
        "code": code_pairs.hashed_words(functions.sources, BUCKETS),
        "text": code_pairs.hashed_words(functions.docstrings, BUCKETS),
    }
    known, new = ({name: one[part] for name, one in data.items()} for part in (rows, unseen))
    print(f"device {device}: {device.name}; {len(functions.names)} functions")
    print(f"{len(unseen)} of them, from modules that are not trained on, untrained model:")
    device.seed(options.seed)
    aligner = alignment.Aligner(encoders_of_functions(options.dropout), WIDTH)
    aligner = aligner.to(device.torch_device)
    print_figures(measure(aligner, new, functions.groups[unseen], is_trained=False))
    train(aligner, known, functions.groups[rows], options)
    print(
        f"trained on {len(rows)} functions, {time.process_time() - begun:.0f} CPU-seconds in all:"
    )
    report = measure(aligner, new, functions.groups[unseen])
    print_figures(report)
    if options.find:
        print(*nearest_functions(aligner, functions, unseen, report, options.find), sep="\n")


if __name__ == "__main__":
    main()

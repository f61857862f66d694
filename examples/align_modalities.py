"""Bring names, pictures and sounds of characters into one space, in two minutes on a CPU.

Pictures and sounds are both trained with names and never with each other: that they find each
other all the same is emergent. All figures are of 800 characters whose glyphs were not seen.

    python examples/align_modalities.py --report page.html
    python examples/align_modalities.py --loss all-ones     without negatives: a warning of collapse
    python examples/align_modalities.py --missing 0.5       half of the characters lack something
"""

import argparse
import collections
import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import character_pairs
import torch
from alignment_parts import optimizer_of, print_figures
from character_encoders import encoders_of_characters
from character_figures import measure
from character_pairs import BUCKETS, Characters
from torch import Tensor

import accel
from accel import alignment

WIDTH, HELD_OUT, READ_EVERY = 256, 800, 10
WEIGHTS = {"text-image": 5.0}  # the hard pair; any other has 1


class Trained(NamedTuple):
    """An aligner and how it came about: a loss and a scale per `READ_EVERY` steps, by name."""

    aligner: alignment.Aligner
    monitor: alignment.CollapseMonitor
    losses: dict[str, list[float]]
    scales: dict[str, list[float]]


def all_ones(embeddings: dict[str, Tensor], pairs: Iterable[tuple[str, str]]) -> Tensor:
    """A loss that is often published: partners should have cosine 1. It has no negatives."""
    cosines = [(embeddings[a] * embeddings[b]).sum(1).mean() for a, b in pairs]
    return 1 - torch.stack(cosines).mean()


def train(data: Characters, rows: Tensor, options: argparse.Namespace) -> Trained:
    """Train on these rows; depends on nothing but the options and the device."""
    device = accel.current_device()
    device.seed(options.seed)
    encoders = encoders_of_characters(BUCKETS, WIDTH)
    kind: Literal["softmax", "sigmoid"] = "sigmoid" if options.loss == "sigmoid" else "softmax"
    aligner = alignment.Aligner(
        encoders, WIDTH, pairs=options.pairs, loss=kind, duplicates=options.duplicates,
        weights=WEIGHTS,
    ).to(device.torch_device)  # fmt: skip
    optimizer, schedule = optimizer_of(aligner, options.learning_rate, options.steps)
    precision = accel.precision.Precision(aligner, options.policy)
    teacher = alignment.EMATeacher(aligner, decay=0.98) if options.teacher else None
    monitor = alignment.CollapseMonitor(interval=READ_EVERY)
    losses, scales = (collections.defaultdict[str, list[float]](list) for _ in range(2))

    generator = torch.Generator().manual_seed(options.seed)
    luck = torch.rand(len(data.names), generator=generator) / max(options.missing, 1e-9)
    presence = torch.stack([luck >= 0, luck > 0.5, (luck < 0.5) | (luck > 1)], dim=1)
    waiting = rows[:0]
    with accel.report.Progress(options.steps, "train", unit="step") as bar:
        for step in range(options.steps):
            if len(waiting) < options.batch:
                waiting = rows[torch.randperm(len(rows), generator=generator)]
            chosen, waiting = waiting[: options.batch], waiting[options.batch :]
            here = presence[chosen]
            inputs = device.move(character_pairs.augmented(data, chosen, generator))
            with precision.autocast():
                output = aligner(inputs, presence=here, groups=device.move(data.groups[chosen]))
                loss, embeddings = output.loss, output.embeddings
                if options.loss == "all-ones":
                    loss = all_ones(embeddings, aligner.pairs)
                if teacher is not None:
                    known = teacher.module.get_submodule("encoders.text")(inputs["text"])
                    known = alignment.normalized(known[device.move(here[:, 2])])
                    taught = alignment.relational_loss(embeddings["audio"], known)
                    loss = loss + options.teacher * taught
            precision.backward(loss)
            if precision.step(optimizer) and teacher is not None:
                teacher.update(aligner)
            schedule.step()
            optimizer.zero_grad()
            monitor.update(embeddings, presence=here)
            if step % READ_EVERY == 0:
                for name, value in {"all": loss, **output.pair_losses}.items():
                    losses[name].append(value.item())
                for name, scale in aligner.temperatures.of(aligner.pairs).items():
                    scales[name].append(scale.item())
            bar.advance(1, f"loss {losses['all'][-1]:.3f}")
    return Trained(aligner, monitor, losses, scales)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512, help="characters per step")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and who is unseen")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--loss", choices=("softmax", "sigmoid", "all-ones"), default="softmax")
    parser.add_argument("--pairs", choices=("hub:text", "hub:image", "all"), default="hub:text")
    parser.add_argument("--duplicates", default="ignore", help="ignore, positive or negative")
    parser.add_argument("--missing", type=float, default=0, help="share without picture or sound")
    parser.add_argument("--teacher", type=float, default=0, help="weight of text teaching audio")
    parser.add_argument("--policy", default="compute=bfloat16", help="of precision")
    parser.add_argument("--report", type=Path, help="write a page here")
    options = parser.parse_args(arguments)
    if min(options.steps, options.batch) < 1 or not 0 <= options.missing < 1:
        parser.error("--steps and --batch must be at least 1, and --missing from 0 to below 1")
    if options.missing and options.loss == "all-ones":
        parser.error("--loss all-ones compares whole batches: leave out --missing")
    if options.report:
        accel.report.check_writable(options.report)
    return options


def main() -> None:
    options = parse()
    begun, device = time.process_time(), accel.current_device()
    data = character_pairs.read_characters()
    rows, unseen = character_pairs.split(data.groups, HELD_OUT, options.seed)
    print(f"device {device}: {device.name}; {options.policy}; {options.loss} loss, {options.pairs}")
    print(f"{len(rows)} characters to train with, {len(unseen)} unseen")
    trained = train(data, rows, options)
    print(f"{time.process_time() - begun:.0f} CPU-seconds")
    report = measure(data, unseen, trained.aligner)
    print_figures(report)
    if options.report:
        page = dataclasses.replace(
            report, steps=range(0, options.steps, READ_EVERY), losses=trained.losses,
            temperatures=trained.scales, readings=trained.monitor.history,
            events=trained.monitor.events, facts=vars(options),
        )  # fmt: skip
        alignment.write_page(options.report, page)


if __name__ == "__main__":
    main()

"""What a model of names, pictures and sounds finds among characters that it was not trained on."""

from collections.abc import Iterable

import character_pairs
import torch
from character_pairs import Characters
from torch import Tensor

import accel
from accel import alignment

PROMPTS = ("{}", "{} LETTER", "{} CAPITAL LETTER", "{} SMALL LETTER", "{} SIGN")


@torch.no_grad()
def measure(data: Characters, rows: Tensor, aligner: alignment.Aligner) -> alignment.TrainingReport:
    """Recall of all pairs, zero-shot accuracy and health of these rows."""
    device, aligner = accel.current_device(), aligner.eval()
    sounds = character_pairs.sound(data.spellings[rows])
    inputs = {"text": data.features[rows], "image": data.glyphs[rows], "audio": sounds}
    embeddings = {name: aligner.encode(name, device.move(one)) for name, one in inputs.items()}
    return alignment.TrainingReport(
        title="Names, pictures and sounds of characters",
        embeddings=embeddings,
        labels=[data.names[row] for row in rows],
        trained=aligner.pairs,
        zero_shot=zero_shot(data, rows, aligner, embeddings),
        retrieval=alignment.retrieve_all_pairs(embeddings, trained=aligner.pairs),
        health=alignment.measure_health(embeddings, broken="leave_out"),
    )


def zero_shot(
    data: Characters, rows: Tensor, aligner: alignment.Aligner, embeddings: dict[str, Tensor]
) -> dict[str, alignment.ZeroShot]:
    """Whether a picture, or a sound, is nearest to what is written of its kind of character."""
    words, labels = families(data.names)
    prompts = character_pairs.hashed_features(p.format(word) for word in words for p in PROMPTS)
    written = aligner.encode("text", accel.current_device().move(prompts))
    if not written.isfinite().all():
        return {}  # the page of such a run says what is broken
    classes = torch.arange(len(words)).repeat_interleave(len(PROMPTS))
    prototypes = alignment.class_prototypes(written, classes)
    known, labels = labels[rows] >= 0, labels[rows]
    return {
        f"first word of the name by {name}": alignment.zero_shot_accuracy(
            embeddings[name][known.to(prototypes.device)], prototypes, labels[known]
        )
        for name in ("image", "audio")
    }


def families(names: Iterable[str], least: int = 40) -> tuple[list[str], Tensor]:
    """The first words that at least that many names share, and each name's, `[N]`, or -1."""
    first = [name.split()[0] for name in names]
    common = sorted({word for word in first if first.count(word) >= least})
    return common, torch.tensor([common.index(w) if w in common else -1 for w in first])

"""Any number of modalities in one space: encoders, heads and the loss of all pairs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from accel.alignment.embeddings import check_finite, check_rows
from accel.alignment.inputs import row_count, select_rows
from accel.alignment.loss import DIRECTIONS, KINDS, Direction, Kind, contrastive_loss
from accel.alignment.normalization import normalized
from accel.alignment.options import check_choice, check_direction, check_not_negative
from accel.alignment.output import AlignmentOutput
from accel.alignment.pair_loss import Extras, PairBatch, PairOptions, pair_batch
from accel.alignment.pairing import MARGIN_STRATEGIES, MarginStrategy
from accel.alignment.pairs import (
    Pair,
    Weights,
    check_modalities,
    pair_name,
    resolve_pairs,
    resolve_weights,
)
from accel.alignment.presence import UNPAIRED, PairRows, Presence, Unpaired, find_presence
from accel.alignment.projection import ProjectionKind, check_embedding, make_projections
from accel.alignment.ranks.forms import FORMS, Form, Ranks
from accel.alignment.scales import Given, pair_numbers
from accel.alignment.temperature import (
    SIGMOID_BIAS,
    SIGMOID_SCALE,
    SOFTMAX_SCALE,
    Bias,
    Temperature,
)
from accel_kernels.contrastive_loss.pairing import DUPLICATES, Duplicates

if TYPE_CHECKING:  # some builds of torch have no collectives, and no such name
    from torch.distributed import ProcessGroup


class Aligner(nn.Module):
    """Trains encoders of several modalities to put what belongs together in one place.

    Example:
        ```
        aligner = Aligner({"text": text, "image": image, "audio": audio}, dim=256)
        output = aligner({"text": ids, "image": pixels, "audio": waves}, presence=presence)
        output.loss.backward()
        ```

    The loss is the weighted mean, over the pairs of modalities that are trained, of the
    `contrastive_loss` of the samples that have both. A sample that lacks a modality is neither
    anchor nor negative where that modality is compared, in rows as in columns. Modalities that are
    never trained together can be compared all the same, by `encode`.

    An encoder is any module whose one argument is what the batch holds of its modality, and whose
    output is `[B, F]`; a head may bring that to `dim`.

    Args:
        encoders: By name of the modality; their order is that of columns and pairs.
        dim: Width of the embeddings.
        pairs: `all`; `hub:image`: every other modality with this one, as ImageBind (arXiv
            2305.05665, section 3); or a list of pairs.
        loss: `softmax` or `sigmoid`.
        projection: `linear` or `mlp` for every encoder; a module for some, by modality; None:
            encoders return `dim` numbers themselves.
        features: Width of every encoder's output, for `linear` and `mlp`.
        temperature: A number, at which every pair's own `Temperature` begins; a `Temperature`,
            which all pairs share; a mapping of pairs to those. None: 14.3 for softmax, 10 for
            sigmoid.
        bias: The same of the `Bias` of a sigmoid loss; None: -10.
        weights: By pair, 1 where none is given; `count`: as many as there are samples that have
            both; None: all alike. They are divided by the sum of those of pairs that occur.
        duplicates: What samples of one group are to each other: `positive`, left out (`ignore`), or
            `negative`.
        unpaired: What a row is whose sample lacks the other modality of a pair: it does not count
            (`ignore`), so that the loss is that of the samples that have both; or it is one more
            `negative` for those.
        direction: Whose rows are anchors in a softmax loss: `both`, or `x_to_y` for the first
            modality of each pair.
        hardness: Hard negatives count for more; see `Pairing`.
        margin: Of the guide; see `guided`.
        margin_strategy: Of the guide.
        form: Over which batch; see `contrastive_loss`.
        process_group: For `all_gather` and `ring`; None: all processes.
        backend: A kernel's name; None to choose.
        check: Raise an error that names modality and rows if an embedding is NaN or infinite. It
            waits for the device at every step. Without, the loss is NaN.

    Attributes:
        modalities: The names.
        pairs: The pairs that are trained.
        encoders: By modality.
        projections: By modality; those without a head are missing.
        temperatures: By name of the pair, or one called `shared`.
        biases: The same; empty for softmax.
        dim: As given.
        check: As given; may be changed.

    Raises:
        TypeError: An encoder or head is no module, or a number no number.
        ValueError: A name or an option is unknown, or options do not fit together.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        dim: int = 256,
        *,
        pairs: str | Iterable[Pair] = "all",
        loss: Kind = "softmax",
        projection: ProjectionKind | Mapping[str, nn.Module] | None = None,
        features: Mapping[str, int] | None = None,
        temperature: Given[Temperature] = None,
        bias: Given[Bias] = None,
        weights: Weights = None,
        duplicates: Duplicates = "positive",
        unpaired: Unpaired = "ignore",
        direction: Direction = "both",
        hardness: float = 0.0,
        margin: float = 0.0,
        margin_strategy: MarginStrategy = "absolute",
        form: Form = "local",
        process_group: ProcessGroup | None = None,
        backend: str | None = None,
        check: bool = False,
    ) -> None:
        super().__init__()
        _check_encoders(encoders, dim)
        check_choice("loss", loss, KINDS)
        check_choice("direction", direction, DIRECTIONS)
        check_direction(loss, direction)
        check_choice("duplicates", duplicates, DUPLICATES)
        check_choice("unpaired", unpaired, UNPAIRED)
        check_choice("form", form, FORMS)
        check_choice("margin_strategy", margin_strategy, MARGIN_STRATEGIES)
        check_not_negative("margin", margin)
        check_not_negative("hardness", hardness)
        if loss == "softmax" and bias is not None:
            raise ValueError("a softmax loss does not depend on a bias; leave it out")
        self.modalities = check_modalities(encoders)
        self.dim = dim
        self.pairs = resolve_pairs(self.modalities, pairs)
        self.kind, self.direction, self.unpaired = loss, direction, unpaired
        self.form, self.process_group, self.backend = form, process_group, backend
        self.check = check
        self._weights = resolve_weights(self.pairs, weights)
        self._options = PairOptions(duplicates, hardness, margin, margin_strategy)
        self.encoders = nn.ModuleDict(encoders)
        self.projections = make_projections(projection, self.modalities, features, dim)
        is_softmax = loss == "softmax"
        self.temperatures = pair_numbers(
            "temperature", Temperature, self.pairs, temperature,
            SOFTMAX_SCALE if is_softmax else SIGMOID_SCALE,
        )  # fmt: skip
        self.biases = pair_numbers(
            "bias", Bias, () if is_softmax else self.pairs, bias, SIGMOID_BIAS
        )

    @property
    def emergent_pairs(self) -> tuple[Pair, ...]:
        """The pairs that are not trained, which only share partners."""
        trained = {frozenset(pair) for pair in self.pairs}
        return tuple(p for p in combinations(self.modalities, 2) if frozenset(p) not in trained)

    def encode(self, modality: str, inputs: Any) -> Tensor:
        """Embed samples of one modality.

        Args:
            modality: Its name.
            inputs: What its encoder takes.

        Returns:
            `[B, dim]`, rows of norm 1 (zeros where the encoder returns zeros), float32; float64 if
            the encoder's output is.

        Raises:
            TypeError: The encoder does not return a floating tensor.
            ValueError: The modality is unknown, or the output is not `[B, dim]`.
        """
        if modality not in self.modalities:
            raise ValueError(
                f"there is no modality {modality!r}; there are {', '.join(self.modalities)}"
            )
        output = self.encoders[modality](inputs)
        if modality in self.projections:
            output = self.projections[modality](output)
        return normalized(check_embedding(modality, output, self.dim))

    def present(self, batch: Mapping[str, Any], presence: Tensor | None) -> dict[str, Any]:
        """What a batch holds of each modality, without the rows of samples that lack it.

        Args:
            batch: By modality, what its encoder takes.
            presence: As for `forward`.

        Raises:
            TypeError: See `forward`.
            ValueError: See `forward`.
        """
        counts = {name: row_count(inputs) for name, inputs in batch.items()}
        found = find_presence(self.modalities, presence, counts)
        inputs = {}
        for name in (one for one in self.modalities if one in batch):
            samples = found.samples[name]
            whole = counts[name] in (None, len(samples))
            inputs[name] = batch[name] if whole else select_rows(batch[name], samples)
        return inputs

    def forward(
        self,
        batch: Mapping[str, Any],
        *,
        presence: Tensor | None = None,
        groups: Tensor | None = None,
        guides: Tensor | Mapping[str, Tensor] | None = None,
        negatives: Mapping[str, Any] | None = None,
    ) -> AlignmentOutput:
        """Encode a batch and compare all pairs.

        Args:
            batch: By modality, what its encoder takes: a row for each of B samples, of which those
                of absent ones are not looked at, or only the rows of those that are present, in
                order. A modality that is left out is absent, and its encoder is not run.
            presence: bool `[B, M]` on the CPU, columns in the order of `modalities`. None: samples
                have all that the batch holds.
            groups: int64 `[B]`, identities: samples of one group show the same (`duplicates`).
            guides: `[B, E]`, a frozen model's embedding of each sample, or by modality; negatives
                that it finds too similar are left out (`guided`).
            negatives: By modality, inputs of hard negatives: nobody's partner, and negatives for
                every anchor of the other modality. Those of the first modality of a pair are rows
                of x, by whose number its sigmoid loss is divided.

        Raises:
            TypeError: A tensor has the wrong dtype or device.
            ValueError: Modalities are unknown, numbers of rows do not fit, no pair occurs, or an
                embedding is not finite and `check` is on. With several ranks, on every rank, and
                also where options differ, or an encoder of another rank raises whatever it does.
            RuntimeError: The form is of several ranks, and there is no process group.
        """
        embeddings, hard = self._ranks.attempt(
            lambda: (
                {
                    name: self.encode(name, one)
                    for name, one in self.present(batch, presence).items()
                },
                {name: self.encode(name, one) for name, one in (negatives or {}).items()},
            )
        )
        return self.loss(
            embeddings, presence=presence, groups=groups, guides=guides, negatives=hard
        )

    def loss(
        self,
        embeddings: Mapping[str, Tensor],
        *,
        presence: Tensor | None = None,
        groups: Tensor | None = None,
        guides: Tensor | Mapping[str, Tensor] | None = None,
        negatives: Mapping[str, Tensor] | None = None,
    ) -> AlignmentOutput:
        """The loss of embeddings that are there already, as `encode` returns them.

        Args:
            embeddings: By modality, `[B, dim]` or only the present rows.
            presence: As for `forward`.
            groups: As for `forward`.
            guides: As for `forward`.
            negatives: By modality, embeddings `[K, dim]`.

        Raises:
            TypeError: As `forward`.
            ValueError: As `forward`.
            RuntimeError: As `forward`.
        """
        compact, found, extras, rows = self._ranks.attempt(
            lambda: self._prepared(embeddings, presence, groups, guides, negatives)
        )
        scales, biases = self.temperatures.of(self.pairs), self.biases.of(self.pairs)
        names = [pair_name(pair) for pair in self.pairs]
        counts, first = self._ranks.joined(
            self._terms(scales, biases), [one.both for one in rows.values()], found.size
        )
        if not any(counts):
            raise ValueError(_nothing_to_compare(names, found))
        options = self._options._replace(first_sample=first)
        losses = {}
        for name, (pair, chosen), count in zip(names, rows.items(), counts, strict=True):
            x, y, scale, bias = compact[pair[0]], compact[pair[1]], scales[name], biases.get(name)
            if not count:
                losses[name] = _zero(x, y, scale, bias)
                continue
            part = self._ranks.attempt(partial(pair_batch, pair, chosen, compact, extras, options))
            losses[name] = self._pair_loss(part, scale, bias)
        by_name = dict(zip(names, counts, strict=True))
        return AlignmentOutput(self._mean(losses, by_name), losses, by_name, compact)

    @property
    def _ranks(self) -> Ranks:
        ranks = Ranks(self.form, self.process_group)
        ranks.check()
        return ranks

    def _prepared(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Tensor | None,
        groups: Tensor | None,
        guides: Tensor | Mapping[str, Tensor] | None,
        negatives: Mapping[str, Tensor] | None,
    ) -> tuple[dict[str, Tensor], Presence, Extras, dict[Pair, PairRows]]:
        """The present rows, who is present, what else the batch says, rows of pairs; checked."""
        check_rows(embeddings, self.modalities, self.dim)
        check_rows(negatives or {}, self.modalities, self.dim, "negatives")
        counts = {name: len(one) for name, one in embeddings.items()}
        found = find_presence(self.modalities, presence, counts)
        compact = _compact(embeddings, found, self.dim)
        if self.check:
            check_finite(compact, found)
        extras = Extras.of(found.size, self.modalities, groups, guides, negatives)
        rows = {pair: found.rows_of(pair, self.unpaired) for pair in self.pairs}
        return compact, found, extras, rows

    def _terms(self, scales: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> dict[str, str]:
        """What must be the same on every rank, in words.

        Whose gradient is asked for too: it is added up over ranks, by all of them or by none.
        """
        if not self._ranks.several:
            return {}
        weights = (self._weights or {}).items()
        learned = {
            f"the {what} that is learned": [n for n, one in given.items() if one.requires_grad]
            for what, given in (("temperature", scales), ("bias", biases))
        }
        return {
            "loss": self.kind,
            "pairs": ", ".join(map(pair_name, self.pairs)),
            "form": self.form,
            "direction": self.direction,
            "unpaired": self.unpaired,
            "weights": ", ".join(f"{name} {float(one)}" for name, one in weights) or "count",
            "duplicates": self._options.duplicates,
            "hardness": str(float(self._options.hardness)),
            "margin": str(float(self._options.margin)),
            "margin_strategy": self._options.margin_strategy,
            "the gradient mode": "on" if torch.is_grad_enabled() else "off",
            **{what: ", ".join(names) or "none" for what, names in learned.items()},
        }

    def _pair_loss(self, part: PairBatch, scale: Tensor, bias: Tensor | None) -> Tensor:
        return contrastive_loss(
            part.x, part.y, scale=scale, bias=bias, kind=self.kind, direction=self.direction,
            pairing=part.pairing, form=self.form, process_group=self.process_group,
            backend=self.backend,
        )  # fmt: skip

    def _mean(self, losses: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        weights = {
            name: (count if self._weights is None else self._weights[name]) if count else 0.0
            for name, count in counts.items()
        }
        total = sum(weights.values())
        if not total:
            raise ValueError(
                "every pair that occurs in this batch has weight 0: "
                f"{', '.join(name for name, count in counts.items() if count)}"
            )
        terms = [
            loss * (weights[name] / total) if counts[name] else loss
            for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        """Pairs and loss."""
        return f"dim={self.dim}, pairs={[*map(pair_name, self.pairs)]}, loss={self.kind}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Aligner:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        memo[id(self.process_group)] = self.process_group  # processes are not copied
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _compact(embeddings: Mapping[str, Tensor], presence: Presence, dim: int) -> dict[str, Tensor]:
    """The present rows of every modality, of those that are absent none."""
    like = next(iter(embeddings.values()))
    found = {}
    for name, samples in presence.samples.items():
        rows = embeddings.get(name)
        if rows is None:
            rows = like.new_zeros(0, dim)
        elif len(rows) != len(samples):
            rows = rows.index_select(0, samples.to(rows.device))
        found[name] = rows
    return found


def _zero(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """0, and zeros as the gradients of all that the loss would have been made of."""
    total = x[:0].sum() + y[:0].sum() + scale.reshape(1)[:0].sum()
    return total if bias is None else total + bias.reshape(1)[:0].sum()


def _nothing_to_compare(names: Iterable[str], presence: Presence) -> str:
    there = ", ".join(f"{name} {len(samples)}" for name, samples in presence.samples.items())
    return (
        f"no sample has both modalities of any pair that is trained ({', '.join(names)}); of "
        f"{presence.size} samples there are: {there}. Skip the batch, or sample batches in which a "
        "pair occurs"
    )


def _check_encoders(encoders: object, dim: object) -> None:
    if not isinstance(encoders, Mapping):
        raise TypeError(
            f"encoders must be a mapping of modalities to modules, not {type(encoders).__name__}"
        )
    for name, encoder in encoders.items():
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"the encoder of {name!r} must be an nn.Module, not {encoder!r}")
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise ValueError(f"dim must be a whole number of at least 1, not {dim!r}")

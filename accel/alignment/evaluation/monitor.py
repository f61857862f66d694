"""Warns that embeddings collapse while the loss still looks perfect.

A loss without negatives is best when all embeddings are one point, and its curve says that training
went well. What tells collapse from ordinary training is not a mean cosine: an untrained encoder
maps everything into a narrow cone (0.9 and more), and a contrastive loss widens it from there. So
readings are compared with the widest spread that the same modality has had (`CollapseRules`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from accel.alignment.evaluation.collapse import (
    Collapse,
    CollapseError,
    CollapseLimits,
    CollapseRules,
)
from accel.alignment.evaluation.reading import (
    Kept,
    Reading,
    distance_apart,
    kept_of,
    plain,
    reading_of,
    restored,
    sides_of,
)

_logger = logging.getLogger("accel")
_HISTORY = 1000  # readings that are kept; beyond, every other one


class CollapseMonitor:
    """Looks at the embeddings of every step and warns, once, when a modality collapses.

    Example:
        ```
        monitor = CollapseMonitor()
        for batch in batches:
            output = aligner(batch)
            monitor.update(output.embeddings)
            ...
        ```

    A step keeps a few rows on their device and waits for nothing; every `interval` steps they are
    copied to the CPU and measured. The first step is always read: later ones are compared with it.
    Rules, each over `limits.patience` readings in a row:

    - *spread*: `1 - mean cosine` is below its limit, below `limits.fall` times its peak, and
      another modality's center is no further away than that: all is one place;
    - *rank*: the same of the effective rank of the centred embeddings;
    - *stuck*: after `limits.stuck_steps` the spread is still below `limits.stuck_spread`;
    - *finite*: rows are zero, NaN or infinite; one reading is enough.

    Args:
        interval: Steps between readings.
        rows: Embeddings of each modality that a reading measures, at most.
        limits: When a reading counts as collapse; None: the defaults.
        raise_on_collapse: Raise `CollapseError` after the warning.

    Attributes:
        history: The readings, thinned to between 500 and 1,000 where there are more.
        events: What was found so far.
        limits: As given.
        raise_on_collapse: May be changed at any time.

    Raises:
        ValueError: `interval` is below 1, or `rows` below 2.
    """

    def __init__(
        self,
        *,
        interval: int = 10,
        rows: int = 256,
        limits: CollapseLimits | None = None,
        raise_on_collapse: bool = False,
    ) -> None:
        if interval < 1 or rows < 2:
            raise ValueError(
                f"interval must be at least 1 and rows at least 2, got {interval} and {rows}"
            )
        self.interval, self.rows = interval, rows
        self.limits = limits or CollapseLimits()
        self.raise_on_collapse = raise_on_collapse
        self.history: list[Reading] = []
        self.events: list[Collapse] = []
        self._rules = CollapseRules(self.limits)
        self._step = self._readings = 0
        self._every = 1  # of the readings, which are kept in the history
        self._kept: list[Kept] = []

    def update(
        self, embeddings: Mapping[str, Tensor], *, presence: Tensor | None = None
    ) -> list[Collapse]:
        """Look at the embeddings of one step.

        Args:
            embeddings: `[B, D]` for each modality, floating point, normalised or not; or only the
                rows that are present. The first ones that are present are kept.
            presence: bool `[B, modalities]` on the CPU, in the order of `embeddings`; None: all
                rows count.

        Returns:
            What holds from now on; each was logged as a warning too.

        Raises:
            CollapseError: Something was found, and `raise_on_collapse` is set.
            ValueError: `presence` does not fit.
        """
        self._keep(embeddings, presence)
        is_read = self._step % self.interval == 0
        self._step += 1
        if not is_read:
            return []
        found = self._read()
        for one in found:
            _logger.warning("%s", one)
        self.events += found
        if found and self.raise_on_collapse:
            raise CollapseError("; ".join(map(str, found)))
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain values, and the rows not read yet, on the CPU."""
        return {
            "step": self._step,
            "readings": self._readings,
            "every": self._every,
            "rules": self._rules.state_dict(),
            "history": [plain(reading) for reading in self.history],
            "events": [asdict(event) for event in self.events],
            "kept": [
                {
                    "rows": {name: rows.cpu() for name, rows in kept.rows.items()},
                    "samples": kept.samples,
                }
                for kept in self._kept
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: It is no such state.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(
                f"the state of a CollapseMonitor lacks {', '.join(missing)}: it is of something "
                "else, or incomplete"
            )
        self._step, self._readings = int(state["step"]), int(state["readings"])
        self._every = int(state["every"])
        self._rules.load_state_dict(state["rules"])
        self.history = [restored(values) for values in state["history"]]
        self.events = [Collapse(**event) for event in state["events"]]
        self._kept = [Kept(dict(kept["rows"]), dict(kept["samples"])) for kept in state["kept"]]

    def _keep(self, embeddings: Mapping[str, Tensor], presence: Tensor | None) -> None:
        """Take the first rows that are there."""
        # A reading is of all steps since the one before; the first is of a single one.
        share = self.rows if self._step == 0 else max(2, -(-self.rows // self.interval))
        self._kept.append(kept_of(embeddings, presence, share))

    def _read(self) -> list[Collapse]:
        """Measure what was kept, on the CPU."""
        steps = [sides_of(kept) for kept in self._kept]
        self._kept = []
        step, names = self._step - 1, tuple(dict.fromkeys(name for one in steps for name in one))
        sides = {name: [one[name] for one in steps if name in one] for name in names}
        units = {name: torch.cat([one.units for one in of]) for name, of in sides.items()}
        reading = reading_of(step, units, steps)
        found = []
        for name in names:
            event = self._rules.judge(
                step, name, reading.modalities[name],
                depth=units[name].shape[1], invalid=sum(one.invalid for one in sides[name]),
                apart=distance_apart(reading, name),
            )  # fmt: skip
            found += [event] if event is not None else []
        self._remember(reading)
        return found

    def _remember(self, reading: Reading) -> None:
        if self._readings % self._every == 0:
            self.history.append(reading)
        self._readings += 1
        if len(self.history) > _HISTORY:
            self.history = self.history[::2]
            self._every *= 2

"""From tensors that were seen to entries of a recording."""

from __future__ import annotations

from torch import Tensor

from accel.numerics.encoding import copied, dtype_name, dtype_named, tensor_digest, why_not_recorded
from accel.numerics.entries import GRADIENT_PHASES, Entry, Key, Kind, Response, Skipped
from accel.numerics.observer import Context
from accel.numerics.writer import Writer


class Sink:
    """Numbers what it is given and writes it.

    Args:
        writer: Where to.

    Attributes:
        root: Index of the call of the model that entries belong to from now on.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.root = -1
        self._sequence = 0
        self._recorded: dict[Key, Entry] = {}

    def put(self, key: Key, tensor: Tensor, context: Context) -> bool:
        """Record the values of a tensor as they are now.

        A gradient that arrives in parts (two backward calls, a module shared by two reentrant
        checkpoints) is recorded as the sum of the parts of one step.

        Returns:
            Whether it could be recorded; if not, the recording says why.
        """
        reason = why_not_recorded(tensor)
        if reason is not None:
            self.writer.add(Skipped(key, reason))
            return False
        own = copied(tensor)
        known = self.recorded(key) if key.phase in GRADIENT_PHASES else None
        own = own if known is None else own + known
        self._recorded[key] = self._add("run", key, own, context, self.writer.keep(own))
        return True

    def recorded(self, key: Key) -> Tensor | None:
        """What was recorded of the run in this step; None if nothing was."""
        entry = self._recorded.get(key)
        if entry is None:
            return None
        return self.writer.kept(entry.digest, dtype_named(entry.dtype), entry.shape)

    def put_truth(
        self, key: Key, tensor: Tensor, context: Context, response: Response | None = None
    ) -> None:
        """Record the float64 truth of a tensor; of a gradient with what else was measured."""
        if why_not_recorded(tensor) is None:  # else the run's own tensor is recorded as skipped
            own = copied(tensor)
            self._add("truth", key, own, context, self.writer.keep(own), response)

    def put_digest(self, key: Key, tensor: Tensor, context: Context) -> str:
        """Record only the digest of a tensor."""
        own = copied(tensor)
        digest = tensor_digest(own)
        self._add("run", key, own, context, (digest, None))
        return digest

    def end_step(self) -> None:
        """From now on a new step is recorded; everything so far goes to the disk."""
        self._recorded.clear()
        self.writer.flush()

    def _add(
        self,
        kind: Kind,
        key: Key,
        own: Tensor,
        context: Context,
        place: tuple[str, str | None],
        response: Response | None = None,
    ) -> Entry:
        digest, blob = place
        entry = Entry(
            key=key,
            kind=kind,
            sequence=self._sequence,
            module_class=context.module_class,
            dtype=dtype_name(own.dtype),
            shape=tuple(own.shape),
            digest=digest,
            blob=blob,
            requires_grad=context.requires_grad,
            autocast=context.autocast,
            root=self.root,
            response=response,
        )
        self._sequence += 1
        self.writer.add(entry)
        return entry

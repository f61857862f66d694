"""Stable names for operators, in whichever phase they run.

A forward operator is named by the module call it runs in. An operator of the backward is named by
the forward operator whose autograd node runs it: autograd numbers its nodes as they are made, and
a node's number is read when it runs. Names therefore do not depend on how often an operator ran
elsewhere, and recomputed activations (checkpointing) change no name of the backward.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel.numerics.storage.entries import OUTSIDE, Key, Phase, Place

_NO_NUMBER = 2**63  # AccumulateGrad nodes have 2**64 - 1


class Call:
    """One call of a module, or what surrounds all of them.

    Attributes:
        module: Its path.
        index: How often the module was called before in this step.
        parent: The call around it; None for the outermost.
        node: Number of the autograd node that was running as it began: that of a recomputation.
        first, last: Numbers of the autograd nodes made in it.
        original: Of a recomputation the call that it repeats.
        autocast: Dtype of the autocast in force.
    """

    __slots__ = (
        "autocast", "children", "counts", "first", "index", "last", "module", "node", "original",
        "parent", "seen", "unnamed",
    )  # fmt: skip

    def __init__(
        self, module: str, index: int, parent: Call | None, node: int | None, first: int
    ) -> None:
        self.module, self.index, self.parent = module, index, parent
        self.node, self.first, self.last = node, first, _NO_NUMBER
        self.original: Call | None = None
        self.autocast: str | None = None
        self.counts: Counter[str] = Counter()  # operators by name
        self.children: dict[str, list[Call]] = {}
        self.seen: Counter[str] = Counter()  # of a recomputation: modules called again so far
        self.unnamed: Counter[str] = Counter()  # autograd nodes that no operator made

    @property
    def phase(self) -> Phase:
        """`recompute` if it runs in a backward."""
        return "forward" if self.node is None else "recompute"


@dataclass
class Origin:
    """What an autograd node is the backward of."""

    call: Call
    text: str  # `addmm#0`, `AccumulateGrad.weight`, `MyFunctionBackward#0`
    place: Place | None = None
    outputs: list[int | None] = field(default_factory=list)  # values that its gradients are of
    counts: Counter[str] = field(default_factory=Counter)
    module: str | None = None  # where that is not the call's


class Names:
    """The names of one step.

    Args:
        parameters: Module path and name of each parameter, by its Python identity.
        search: Finds those of a parameter that came later.
    """

    def __init__(
        self,
        parameters: dict[int, tuple[str, str]],
        search: Callable[[Tensor], tuple[str, str] | None] | None = None,
    ) -> None:
        self._parameters, self._search = parameters, search
        self._leaves = 0
        self.outside = Call(OUTSIDE, 0, None, None, 0)
        self.stack: list[Call] = []
        self.optimizer: Call | None = None
        self._optimizers: Counter[str] = Counter()
        self._calls: dict[str, list[Call]] = {}
        self._origins: dict[int, Origin] = {}
        self._accumulations: dict[int, Origin] = {}
        self._marks: list[tuple[int, Call]] = [(0, self.outside)]  # which call made which nodes
        self._next_node = next_node()
        self._foretold: dict[tuple[int, str], int] = {}
        self._promised: tuple[str, Origin] | None = None

    # --- module calls and optimizers --------------------------------------------------------------

    def enter(self, module: str) -> Call:
        """A module call begins."""
        parent, node = (self.stack[-1] if self.stack else None), running_number()
        repeated = node is not None and (parent is None or parent.node == node)
        call = self._again(module, parent, node) if repeated else self._first(module, parent)
        self.stack.append(call)
        self._marks.append((next_node(), call))
        return call

    def leave(self) -> Call:
        """The innermost module call is over."""
        call = self.stack.pop()
        call.last = next_node()
        self._marks.append((call.last, self.stack[-1] if self.stack else self.outside))
        return call

    def enter_optimizer(self, kind: str) -> None:
        """An optimizer of a class begins its step."""
        self.optimizer = Call(kind, self._optimizers[kind], None, None, 0)
        self._optimizers[kind] += 1

    def leave_optimizer(self) -> None:
        """It is over."""
        self.optimizer = None

    def _first(self, module: str, parent: Call | None) -> Call:
        calls = self._calls.setdefault(module, [])
        call = Call(module, len(calls), parent, None, next_node())
        calls.append(call)
        if parent is not None:
            parent.children.setdefault(module, []).append(call)
        return call

    def _again(self, module: str, parent: Call | None, node: int | None) -> Call:
        """A call that repeats an earlier one, which is found by the node that needs it."""
        original = self._repeated(module, parent, node or 0)
        index = len(self._calls.get(module, [])) if original is None else original.index
        call = Call(module, index, parent, node, next_node())
        call.original = original
        return call

    def _repeated(self, module: str, parent: Call | None, node: int) -> Call | None:
        if parent is not None and parent.original is not None:
            twins = parent.original.children.get(module, [])
            place = parent.seen[module]
            parent.seen[module] += 1
            return twins[place] if place < len(twins) else None
        calls = self._calls.get(module, [])
        within = [call for call in calls if call.first <= node < call.last]
        after = [call for call in calls if call.first >= node]
        return next(iter(within or after or calls), None)

    # --- operators --------------------------------------------------------------------------------

    def key(self, op: str, *, is_collective: bool = False) -> tuple[Key, Origin | None]:
        """The name of an operator that is about to run, and what it is the backward of.

        The caller passes the operator to `made` if it made an autograd node.
        """
        origin = self._running_origin()
        if origin is not None:
            phase: Phase = "collective" if is_collective else "backward"
            call, counts, text = origin.call, origin.counts, origin.text
        else:
            call = self.innermost
            phase = "optimizer" if call is self.optimizer else call.phase
            if call is self.outside and torch._C._current_graph_task_id() >= 0:
                phase = "backward"  # what a backward runs at its end (DDP, FSDP)
            phase = "collective" if is_collective else phase
            # A second recomputation goes on counting where the first stopped.
            counts, text = self._counts(call, None), ""
        place = f"{phase}:{op}"
        k = counts[place]
        counts[place] += 1
        module = call.module if origin is None or origin.module is None else origin.module
        return Key(phase, module, call.index, text, op, k), origin

    def made(self, key: Key, origin: Origin | None, place: Place | None) -> Origin | None:
        """Note the autograd node that the operator now running has made, if it made one."""
        number = next_node()
        if number <= self._next_node:
            return self._kept_promise(key)
        self._next_node = number
        if not torch.is_grad_enabled():
            return None  # the node of a custom function, whose forward this operator is part of
        return self._noted(number, f"{key.op}#{key.k}", origin, place)

    def foretell(self, op: str, place: Place | None) -> None:
        """An operator on wrapped tensors begins: its node goes by the local one of its name."""
        number = next_node()
        if number <= self._next_node or not torch.is_grad_enabled():
            return
        self._next_node = number
        origin = self._running_origin()
        call = self.innermost if origin is None else origin.call
        phase = "backward" if origin is not None else call.phase
        counts = self._counts(call, origin)
        here = id(counts), f"{phase}:{op}"
        if self._foretold.get(here) == counts[here[1]]:
            counts[here[1]] += 1  # the one before ran no local operator of its name
        k = self._foretold[here] = counts[here[1]]
        text = f"{op}#{k}"
        self._promised = text, self._noted(number, text, origin, place)

    def _kept_promise(self, key: Key) -> Origin | None:
        """What was foretold of an operator, if it is the one."""
        promised, text = self._promised, f"{key.op}#{key.k}"
        if promised is None or promised[0] != text or key.phase not in ("forward", "recompute"):
            return None
        self._promised = None
        return promised[1]

    def _noted(self, number: int, text: str, origin: Origin | None, place: Place | None) -> Origin:
        if origin is not None:
            call, text = origin.call, f"{origin.text}/{text}"
        else:
            call = self.stack[-1] if self.stack else self.outside
            call = call if call.original is None else call.original
        made = self._origins[number - 1] = Origin(call, text, place)
        return made

    def _counts(self, call: Call, origin: Origin | None) -> Counter[str]:
        """Where operators of a place are counted."""
        if origin is not None:
            return origin.counts
        # A second recomputation goes on counting where the first stopped.
        return call.counts if call.original is None else call.original.seen

    @property
    def innermost(self) -> Call:
        """The module call, optimizer step or surroundings that run now."""
        return self.stack[-1] if self.stack else (self.optimizer or self.outside)

    def origin_of(self, node: Any) -> Origin:
        """What an autograd node is the backward of."""
        number = int(node._sequence_nr())
        if number >= _NO_NUMBER:
            return self._accumulation(node)
        found = self._origins.get(number)
        if found is None:
            at = bisect.bisect_right(self._marks, number, key=lambda mark: mark[0]) - 1
            call, name = self._marks[max(at, 0)][1], node.name().split("::")[-1]
            call = call if call.original is None else call.original
            found = self._origins[number] = Origin(call, f"{name}#{call.unnamed[name]}")
            call.unnamed[name] += 1
        return found

    def _accumulation(self, node: Any) -> Origin:
        variable: Tensor = node.variable
        found = self._accumulations.get(id(variable))
        if found is None:
            place = self._parameters.get(id(variable))
            if place is None and self._search is not None:
                place = self._search(variable)
            if place is None:
                place = OUTSIDE, f"input#{self._leaves}" if self._leaves else "input"
                self._leaves += 1
            module, name = place
            found = Origin(self.outside, f"AccumulateGrad.{name}", module=module)
            self._accumulations[id(variable)] = found
        return found

    def _running_origin(self) -> Origin | None:
        node = torch._C._current_autograd_node()
        if node is None or (self.stack and self.stack[-1].node == int(node._sequence_nr())):
            return None  # no backward, or a forward that it repeats
        return self.origin_of(node)


def next_node() -> int:
    """The number that autograd will give to its next node."""
    return int(torch._C._autograd._get_sequence_nr())


def running_number() -> int | None:
    """The number of the autograd node that is running, None outside of a backward."""
    node = torch._C._current_autograd_node()
    return None if node is None else int(node._sequence_nr())

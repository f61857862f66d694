"""Lines for what the backward pass does: those of the forward operators.

torch numbers the nodes of its graph as it makes them. An operator below autograd runs just after
its node is made, so the number and the user's line are written down together; a derivative asks its
node for the number. Both cost one walk up the stack per node.
"""

from __future__ import annotations

from typing import Any

import torch

from accel.simulate.porting.locations import UNKNOWN, Location, Locator

_MOST = 100_000  # nodes that are remembered: more than a graph that fits the simulator


class ForwardLines:
    """The user's line of each node of torch's graph, as far as operators on the device made it."""

    def __init__(self, locator: Locator) -> None:
        """Take lines from `locator`."""
        self._locator = locator
        self._lines: dict[int, Location] = {}

    def remember(self) -> None:
        """Note the line of the node that was made last in this thread, if it is new."""
        number = torch._C._autograd._get_sequence_nr() - 1
        if number in self._lines or not torch.is_grad_enabled():
            return
        if len(self._lines) >= _MOST:
            for old in list(self._lines)[: _MOST // 2]:
                del self._lines[old]
        self._lines[number] = self._locator.find()[0] or UNKNOWN

    def location(self) -> Location:
        """The line that the calling thread's work is for."""
        found, passed = self._locator.find()
        if found is not None and not passed:
            return found
        node = _current_node()
        if node is None:
            return found or UNKNOWN
        line = self._lines.get(node._sequence_nr(), UNKNOWN)
        if line is UNKNOWN:
            line = found or UNKNOWN
        return line._replace(backward=True)


def _current_node() -> Any:
    """The node of torch's graph whose derivative this thread computes; None outside backward."""
    return torch._C._current_autograd_node()

"""The kinds of places that a value may end in."""

from __future__ import annotations

import ast
from typing import Literal, NamedTuple

Kind = Literal[
    "device",  # a device argument
    "device_type",  # an argument that wants a device's type, as autocast's
    "kind",  # a `device_type` of a function of which nothing is known: it may be a kind of code
    "foreign",  # a device argument of a package that is not torch's
    "comparison",  # ==, in, startswith, endswith, match
    "parsing",  # taken apart: split, replace, slices
    "key",  # of a dictionary, or an index
    "option",  # a command-line option's name or destination
    "choice",  # among an option's choices
    "help",
    "path",  # a file, a URL
    "message",  # printed, logged, raised
    "text",  # part of a longer text that goes nowhere in particular
    "test",  # only whether it is true
    "return",  # of a function that nothing here calls
    "passed",  # to a function of which nothing is known here
    "stored",  # where nothing here reads it
    "discarded",  # a statement of its own: docstrings
    "unknown",
]


class Sink(NamedTuple):
    """Where a value ends.

    Attributes:
        kind: What the place is.
        node: The call, comparison, … that it ends in.
        name: The variable, parameter, keyword or attribute that carried it there; "" for none.
    """

    kind: Kind
    node: ast.AST
    name: str = ""

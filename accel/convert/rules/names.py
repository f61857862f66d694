"""ACC140 to ACC149: words that name nothing of CUDA's, with the proof; what has none is flagged."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accel.convert.finding import Finding, Span
from accel.convert.ledger import Enclosing
from accel.convert.module import Module
from accel.convert.rules import names_through, reverse
from accel.convert.rules.names_identifiers import Identifiers
from accel.convert.rules.names_known import Known
from accel.convert.rules.names_places import Places
from accel.convert.rules.names_rules import RULES as RULES
from accel.convert.rules.names_strings import Strings
from accel.convert.rules.names_verdict import Verdict, unknown
from accel.convert.tokens import Token

_NOWHERE = unknown(
    "a name that is in no node of the syntax tree",
    "Please report this line as a bug of the converter.",
)


def find(module: Module, tokens: Sequence[Token], findings: Sequence[Finding]) -> list[Finding]:
    """Account for the words that no other rule has spoken of."""
    out = [*reverse.imports(module, findings), *names_through.find(module)]
    said = Enclosing((finding.span, finding) for finding in (*findings, *out))
    silent = [t for t in tokens if t.kind != "comment" and not said.around(t.span)]
    if not silent:
        return out
    judge = _Judge(module)
    last: Span | None = None
    for token in silent:
        if token.whole == last:
            continue  # one finding for a name or string, however many words are in it
        last = token.whole
        verdict = judge.of(token)
        if verdict.advice:
            out.append(module.flag(token.whole, verdict.rule, verdict.message, verdict.advice))
        else:
            out.append(module.keep(token.whole, verdict.rule, verdict.message))
    return out


class _Judge:
    def __init__(self, module: Module) -> None:
        known = Known(module)
        self._module = module
        self._places = Places(module)
        self._identifiers = Identifiers(module, known)
        self._strings = Strings(module, known)

    def of(self, token: Token) -> Verdict:
        if token.kind == "string":
            literal = self._places.string(token.whole)
            return self._strings.judge(literal) if literal is not None else _NOWHERE
        node = self._places.name(token.whole)
        if node is None:
            return _NOWHERE
        word = self._module.source.text(token.whole)
        verdict = self._identifiers.judge(node, word)
        # A name in capitals is the file's, not what a sentence calls CUDA.
        read = self._module.vendor.own(word)
        return verdict._replace(message=re.sub(rf"\b{read}\b", word, verdict.message))

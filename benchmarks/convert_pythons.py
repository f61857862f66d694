"""The converter on other Pythons: the same output, finding by finding, for the same programs.

Positions within f-strings, the tokenizer and `ast` differ from release to release. The programs are
the examples and look-alikes of every rule, the zoo and the mini-trainers, for all targets. Needs
interpreters, with nothing installed, as arguments: convert_pythons.py python3.10 python3.13
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def programs() -> dict[str, bytes]:
    """All by a name."""
    from accel.convert import RULES

    found = {p.name: p.read_bytes() for p in sorted(ROOT.glob("tests/convert/*/*.py"))}
    for rule in RULES:
        if not "ACC120" <= rule.id <= "ACC139":
            texts = [*(example.before for example in rule.examples), *rule.kept]
            found |= {f"{rule.id}-{n}": text.encode() for n, text in enumerate(texts)}
    return found


def digests() -> dict[str, str]:
    """Of what becomes of each program, by name and target."""
    from accel.convert import Options, convert_source

    found = {}
    for name, data in programs().items():
        for target in ("accel", "torch", "npu"):
            result = convert_source(data, f"{name}.py", Options(target=target))
            said = [(f.rule, f.action, f.span, f.message, f.advice) for f in result.findings]
            account = repr((result.after, result.error, said, result.ledger))
            found[f"{name} {target}"] = hashlib.sha256(account.encode()).hexdigest()
    return found


def main() -> int:
    """Compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", help="interpreters")
    parser.add_argument("--digests", action="store_true", help="print this interpreter's and leave")
    arguments = parser.parse_args()
    if arguments.digests:
        print(json.dumps({"version": sys.version.split()[0], "digests": digests()}))
        return 0
    import environment

    wanted, rows = digests(), {}
    for python in arguments.pythons:
        run = subprocess.run(
            [python, __file__, "--digests"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        other = json.loads(run.stdout)
        differ = sorted(key for key in wanted if other["digests"].get(key) != wanted[key])
        rows[other["version"]] = {"programs": len(wanted), "differ": differ}
        print(other["version"], f"{len(differ)} of {len(wanted)} differ", differ[:10], flush=True)
    print(environment.write("convert_pythons", {"compared_with": sys.version.split()[0], **rows}))
    return int(any(row["differ"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())

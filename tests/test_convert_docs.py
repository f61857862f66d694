"""The pages of the rules are those of the table, and every link to one leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

from accel.convert.rules import RULES

ROOT = Path(__file__).parents[1]


def test_rule_pages_are_what_the_table_says() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "ci/rule_pages", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_rule_that_docs_name_exists() -> None:
    known = {rule.id for rule in RULES}
    for page in ROOT.glob("docs/*.md"):
        assert set(re.findall(r"ACC\d{3}", page.read_text())) <= known, page.name

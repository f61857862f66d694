"""The report as a page: self-contained, safe with hostile names, usable with thousands of rows."""

import html.parser
import json
import re

from accel.convert.pages import page
from accel.convert.pages.runs import Trace, Unseen
from accel.convert.pages.summary import Place, summarize
from tests.convert_results import HOSTILE, file, finding, rich, tree

VOID = {"meta", "input", "br", "wbr", "hr", "img"}


class Checked(html.parser.HTMLParser):
    """Tags that fit together, scripts counted, links and ids kept."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.scripts, self.sources = [], set(), set(), 0, []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        self.ids.update({given["id"]} if "id" in given else ())
        self.links.update({given["href"]} if "href" in given else ())
        self.sources += [given[name] for name in ("src",) if name in given]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text):
    parser = Checked()
    parser.feed(text)
    assert parser.open == []
    return parser


def html_of(one, trace=None):
    return page.to_html(one, summarize(one), trace)


def data_of(text):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


def test_the_page_loads_nothing_and_its_links_lead_somewhere() -> None:
    text = html_of(rich())
    parser = checked(text)
    assert parser.sources == []
    rows = len(data_of(text)["rows"])
    for link in parser.links:
        row = re.fullmatch(r"#finding-(\d+)", link)
        assert int(row[1]) < rows if row else link[1:] in parser.ids, link


def test_the_verdict_stands_at_the_top_and_missing_tokens_before_all_sections() -> None:
    text = html_of(rich())
    anchors = ["aria-label=\"Verdict\"", 'id="missing"', 'id="blockers"', 'id="work"', 'id="human"',
               'id="operators"', 'id="other-0"', 'id="ledger"', 'id="findings"']  # fmt: skip
    found = [text.find(one) for one in anchors]
    assert found[:4] == sorted(found[:4])
    assert -1 not in (found[0], found[1], found[2], found[5], found[6], found[8])
    assert "DataParallel (1 place)" in text


def test_hostile_names_and_lines_stay_text() -> None:
    text = html_of(rich())
    assert HOSTILE not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    clean = tree(file("src/b.py", findings=[finding()]))
    # Its own scripts and the table's data; nothing came in with a name.
    assert checked(text).scripts == checked(html_of(clean)).scripts == 2
    data = data_of(text)
    assert any(HOSTILE in str(row) for row in data["rows"])
    assert all("<script" not in (one or "") for one in data["details"])


def test_a_page_without_findings_is_whole() -> None:
    text = html_of(tree(file()))
    checked(text)
    assert "Nothing here is bound to a device." in text
    assert 'id="findings"' not in text


def test_every_blocker_is_open_however_many_there_are() -> None:
    found = [finding("ACC090", "flag", n, blocker=True, subject=f"thing {n}") for n in range(20)]
    work = [finding("ACC030", "flag", n, subject=f"work {n}") for n in range(20)]
    text = html_of(tree(file(findings=[*found, *work]), conflicts=("accel.py is there",)))
    checked(text)
    blockers = text.partition('id="blockers"')[2].partition('id="work"')[0]
    assert blockers.count("<details open") == 20
    assert "accel.py is there" in blockers
    assert "<details open" not in text.partition('id="human"')[2].partition('id="ledger"')[0]


def test_five_thousand_findings_travel_as_data() -> None:
    files = [
        file(f"src/deep/er/module_{n}.py", b"x\n" * 50, lines=50, findings=[
            finding("ACC001", ("convert", "flag", "keep")[k % 3], k + 1, subject=f"s{k % 7}")
            for k in range(50)
        ])
        for n in range(100)
    ]  # fmt: skip
    text = html_of(tree(*files))
    assert len(data_of(text)["rows"]) == 5000
    assert len(text) < 4_000_000
    assert text.count("<tr") < 400
    checked(text)


def test_a_trace_has_its_section() -> None:
    one = rich()
    place = Place(one.files[0].path, one.files[0].findings[0])
    trace = Trace(9, 3, (Unseen("b.py", 3, "torch.cuda.synchronize", "", "pkg", 8),), (place,), 4)
    text = html_of(one, trace)
    checked(text)
    assert "torch.cuda.synchronize" in text
    assert "1 site of 4 at which no call was logged" in text

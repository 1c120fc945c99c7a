"""The page: all that it shows stands in its HTML, nothing in it comes from elsewhere, and no text can become markup."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from stored import Recipe, change_json, store_run

from gammatune.errors import UserError
from gammatune.files import write_json
from gammatune.replay.prices import from_ratio
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, read_table, write_table
from gammatune.report import page
from gammatune.report.answers import pick_evenly
from gammatune.runs.store import find_runs, read_run

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
QWEN = REFERENCE / "qwen2.5-coder-0.5b-1.5b-demo-3703d56818"
SMOLLM2 = REFERENCE / "smollm2-draft-135m-demo-2828959329"
NASTY = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" 'so' &amp; \x1b[2J"
VOID = {"meta", "input", "br", "img", "link"}


@dataclass
class Node:
    tag: str
    attributes: dict
    parent: "Node | None" = None
    children: list = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(each if isinstance(each, str) else each.text for each in self.children)

    def all(self, tag: str = "", **wanted) -> list["Node"]:
        """Nodes below with that tag, and attributes of these values; class_ is class, data_arm is data-arm."""
        attributes = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [n for n in self.below() if n.tag == (tag or n.tag) and attributes.items() <= n.attributes.items()]

    def below(self) -> Iterator["Node"]:
        for each in self.children:
            if isinstance(each, Node):
                yield each
                yield from each.below()


class Reader(HTMLParser):
    """A page as a tree; fails where tags do not close in order."""

    def __init__(self):
        super().__init__()
        self.root = self.now = Node("", {})

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(attributes), self.now)
        self.now.children.append(node)
        if tag not in VOID:
            self.now = node

    def handle_startendtag(self, tag, attributes):
        self.now.children.append(Node(tag, dict(attributes), self.now))

    def handle_endtag(self, tag):
        assert self.now.tag == tag, f"</{tag}> closes <{self.now.tag}>"
        self.now = self.now.parent

    def handle_data(self, data):
        self.now.children.append(data)


def parse(file: Path) -> Node:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    assert reader.now is reader.root
    return reader.root


def only(nodes: list[Node]) -> Node:
    (node,) = nodes
    return node


def rows(section: Node) -> list[list[str]]:
    return [[cell.text.strip() for cell in row.children if isinstance(cell, Node)] for row in section.all("tr")]


def cut_answers(file: Path, source: Path, questions: set[int]) -> Path:
    """A part of a stored table."""
    whole = read_table(source)
    write_table(AcceptanceTable([turn for turn in whole.turns if turn.question_id in questions], whole.facts), file)
    return file


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return parse(page.write_run_page(read_run(QWEN), tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def nasty_run(tmp_path):
    """Texts of tokens, questions, pair and tasks that try to be markup."""
    folder = store_run(tmp_path / "run", Recipe(questions=2, repetitions=1, tokens=(8, 12), facts={"pair": NASTY}))
    pieces = dict.fromkeys(json.loads((folder / "pieces.json").read_text())["pieces"], NASTY)
    asked = {str(turn.question_id): [NASTY, NASTY] for turn in read_run(folder).arms[0].turns}
    write_json(folder / "pieces.json", {"pieces": pieces, "questions": asked})
    return folder


def test_the_headline_is_the_runs(qwen):
    found = rows(only(qwen.all("section", id="headline")))
    assert [row[0] for row in found[1:]] == ["autoregressive", "fixed 5", "GammaTune", "GammaTune+", "optimal stopping"]
    assert found[5][1] == "1.50" and found[5][3:] == ["1.41 to 1.58", "3.65", "0.74", "5.4", "yes"]
    assert "all 936 rounds of 4 drafting arms are identical" in only(qwen.all("ul", class_="notes")).text


@pytest.mark.parametrize(("run", "prices"), [(QWEN, "prices.json"), (SMOLLM2, "medians of this run's own rounds")])
def test_every_policy_is_ranked_with_the_prices_or_the_times_of_the_run(run, prices, tmp_path):
    written = parse(page.write_run_page(read_run(run), tmp_path / "report.html"))
    section = only(written.all("section", id="ranking"))
    speeds = [float(row[1]) for row in rows(section) if row[0] != "policy"]
    assert len(speeds) > 30 and speeds == sorted(speeds, reverse=True)
    assert prices in section.text and "Modelled" in section.text


def test_each_token_has_its_kind_and_the_drafts_probability(qwen):
    run, table = read_run(QWEN), read_table(QWEN / "acceptance.parquet")
    turn, beside = run.arm("gammatune-3").turns[0], table.turns[0]
    answer = qwen.all("details", data_arm="gammatune-3")[0]
    groups = only(answer.all("div", class_="text")).all("span", class_="r")
    assert len(groups) == len(turn.rounds)
    tokens = [token for group in groups for token in group.all("span")]
    assert "".join(token.text for token in tokens) == "".join(run.pieces[token] for token in turn.output_ids)
    place = 0
    for group, r in zip(groups, turn.rounds, strict=True):
        kinds = [token.attributes["class"] for token in group.all("span")]
        last = "target" if not r.drafted else "bonus" if r.accepted == r.drafted else "corrected"
        assert kinds == ["accepted"] * r.accepted + [last] * (r.emitted - r.accepted)
        assert f"gamma {r.planned}, drafted {r.drafted}, accepted {r.accepted}" in group.attributes["title"]
        for token in group.all("span"):
            assert f"{beside.trace.signals.top1[place]:.2f}" in token.attributes["title"]
            place += 1
        assert group.attributes["tabindex"] == "0"


def test_what_the_target_rejected_is_named(qwen):
    answer = qwen.all("details", data_arm="gammatune-3")[0]
    turn, table = read_run(QWEN).arm("gammatune-3").turns[0], read_table(QWEN / "acceptance.parquet")
    rejected = sum(r.accepted < r.drafted for r in turn.rounds)
    assert len(answer.all("s")) == rejected > 0
    first = next(r for r in turn.rounds if r.accepted < r.drafted)
    proposed = int(table.turns[0].trace.ids[first.context - turn.prompt_tokens + first.accepted])
    assert answer.all("s")[0].text == read_run(QWEN).pieces.get(proposed, f"‹{proposed}›")


def test_gamma_is_drawn_beside_the_accepted_tokens(qwen):
    drawn = qwen.all("details", data_arm="gammatune-3")[0].all("figure", class_="bars")[0]
    turn = read_run(QWEN).arm("gammatune-3").turns[0]
    accepted, gamma = only(drawn.all("path", class_="taken")), only(drawn.all("path", class_="gamma"))
    heights = [int(h) // 6 for h in re.findall(r"v-(\d+)h8", accepted.attributes["d"])]
    assert heights == [r.accepted for r in turn.rounds if r.accepted]
    top = int(only(drawn.all("svg")).attributes["viewbox"].split()[3])
    assert [(top - int(v)) // 6 for v in re.findall(r"V(\d+)h10", gamma.attributes["d"])] == [r.planned for r in turn.rounds]


def test_nothing_comes_from_elsewhere_and_only_our_script_may_run(qwen):
    policy = only(qwen.all("meta", http_equiv="Content-Security-Policy")).attributes["content"]
    script, style = only(qwen.all("script")), only(qwen.all("style"))
    for kind, node in (("script", script), ("style", style)):
        digest = b64encode(sha256(node.text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy and node.attributes == {}
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for node in qwen.all():
        assert not node.attributes.keys() & {"src", "href", "style", "srcset", "action", "onclick"}, node
    assert "@import" not in style.text and "url(" not in style.text


def test_without_scripts_everything_is_there_but_the_filters(qwen):
    hidden = [node for node in qwen.all() if "hidden" in node.attributes]
    assert [node.attributes.get("id") for node in hidden] == ["filters"]
    assert len(qwen.all("article")) == len(read_run(QWEN).arm("ar").turns)
    assert only(qwen.all("meta", name="viewport")).attributes["content"].startswith("width=device-width")
    assert "prefers-color-scheme: dark" in only(qwen.all("style")).text


def test_no_text_becomes_markup(nasty_run):
    found = parse(page.write_page(nasty_run))
    assert len(found.all("script")) == 1 and not found.all("img")
    shown = NASTY.replace("\x1b", r"\x1b")
    assert only(found.all("h1")).text == shown.replace("\n", r"\n")
    assert found.all("blockquote")[0].text == shown
    assert only(found.all("details", data_arm="gammatune-3")[0].all("div", class_="text")).text.startswith(shown)
    assert "\x1b" not in (nasty_run / "report" / "report.html").read_text()


def test_a_run_without_texts_or_table_shows_ids(tmp_path):
    folder = store_run(tmp_path / "run", Recipe(questions=2, repetitions=1))
    (folder / "pieces.json").unlink()
    found = parse(page.write_page(folder))
    token = read_run(folder).arm("gammatune-3").turns[0].output_ids[0]
    text = only(found.all("details", data_arm="gammatune-3")[0].all("div", class_="text")).text
    assert text.startswith(f"‹{token}›") and not found.all("section", id="ranking") and not found.all("blockquote")
    assert "ids are shown" in only(found.all("section", id="answers")).text


def test_damaged_texts_are_refused(tmp_path):
    folder = store_run(tmp_path / "run", Recipe(questions=1, repetitions=1))
    change_json(folder / "pieces.json", questions={"x": 7})
    with pytest.raises(UserError, match="pieces.json is damaged .something else than texts of questions.: run the same"):
        page.write_page(folder)


def test_no_speed_is_given_for_random_weights(tmp_path):
    folder = store_run(tmp_path / "run", Recipe(questions=2, repetitions=1, facts={"random_weights": True}))
    found = parse(page.write_page(folder))
    assert all(row[1] == "–" for row in rows(only(found.all("section", id="headline")))[1:])
    assert not found.all("section", id="by-task")


def test_answers_that_are_too_many_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LARGEST", 150_000)
    folder = store_run(tmp_path / "run", Recipe(questions=40, repetitions=1))
    found, file = parse(page.write_page(folder)), folder / "report" / "report.html"
    assert file.stat().st_size <= 150_000
    articles = found.all("article")
    assert f"{len(articles)} of 160 prompts" in only(found.all("section", id="answers")).text
    assert {node.attributes["data-task"] for node in articles} == {"mt_bench", "translation", "math_reasoning"}


def test_tasks_take_turns():
    sizes = {(task, number, 0): 10 for task in ("a", "b", "c") for number in range(5)}
    assert pick_evenly(sizes, 60) == [(task, number, 0) for task in ("a", "b", "c") for number in range(2)]
    assert pick_evenly(sizes, 1) == [("a", 0, 0)]


def test_a_table_shows_its_facts_its_ranking_and_its_matches(tmp_path):
    table = cut_answers(tmp_path / "acceptance.parquet", QWEN / "acceptance.parquet", {1, 5, 6, 9})
    file = page.write_table_page(table, tmp_path / "table.html", from_ratio(8.0))
    found, turn = parse(file), read_table(table).turns[0]
    facts = only(found.all("dl", class_="facts")).text
    assert "demo" in facts and f"{read_table(table).tokens}" in facts
    assert "a target step costs 8.0 draft steps" in only(found.all("section", id="ranking")).text
    answer = only(found.all("article")[0].all("div", class_="text"))
    tokens = [token for group in answer.all("span", class_="r") for token in group.all("span")]
    assert [t.attributes["class"] == "match" for t in tokens] == (turn.match == 1).tolist()
    assert all(f"{p:.2f}" in t.attributes["title"] for t, p in zip(tokens, turn.trace.signals.top1, strict=True))


def test_a_table_without_prices_or_with_unknown_positions_says_why_nothing_is_ranked(tmp_path):
    table = cut_answers(tmp_path / "acceptance.parquet", QWEN / "acceptance.parquet", {1})
    assert "there are no prices" in parse(page.write_table_page(table, tmp_path / "table.html")).text
    whole = read_table(table)
    turn: AcceptanceTurn = whole.turns[0]
    turn.trace.match = np.append([-1], turn.trace.match[1:]).astype(np.int8)
    turn.trace.signals = turn.trace.continuations = turn.trace.ids = None
    turn.trace.steps, turn.trace.ended = turn.trace.steps[:0], turn.trace.ended[:0]
    write_table(AcceptanceTable([turn], whole.facts), table)
    found = parse(page.write_table_page(table, tmp_path / "table.html", from_ratio(8.0)))
    assert "some positions is unknown" in found.text and len(found.all("span", class_="unknown")) == 2  # the legend's too


def test_an_advice_shows_a_line_for_each_engine_and_carries_its_numbers(tmp_path):
    advice = json.loads(Path(__file__).with_name("advice.json").read_text())
    advice["warnings"].append(NASTY)
    advice["engines"][0]["line"] += NASTY
    found = parse(page.write_advice_page(advice, None, tmp_path / "advice.html"))
    assert [node.text for node in found.all("code")] == [
        engine["line"].replace("\x1b", r"\x1b") for engine in advice["engines"] if engine["line"]
    ]
    data = only(found.all("script", type="application/json"))
    assert json.loads(data.text) == advice and "</" not in data.text
    assert "1.44 to 1.58" in only(found.all("section", id="advice")).text and advice["verdict"] in found.text
    others = only(found.all("section", id="drafters")).text
    assert "drafter=[suffix,model]" in others and "1.52 to 1.68" in others
    assert not found.all("article")


def test_an_advice_with_a_table_shows_answers(tmp_path):
    advice = json.loads(Path(__file__).with_name("advice.json").read_text())
    found = parse(page.write_advice_page(advice, QWEN / "acceptance.parquet", tmp_path / "advice.html"))
    assert len(found.all("article")) == 21


def test_a_run_leaves_its_page(call_run, small, tmp_path):
    ended = call_run(*small, "policy=[fixed,gammatune]", f"results={tmp_path / 'r'}")
    (run,) = find_runs(tmp_path / "r")
    file = run / "report" / "report.html"
    assert ended.code == 0 and f"A page to look at: {file}" in ended.out.splitlines()
    found = parse(file)
    assert {node.text for node in found.all("blockquote")} == {"Why does ice float?", "2 + 2 =", "A poem.", "Shorter."}
    texts = read_run(run).texts
    table = read_table(run / "acceptance.parquet")
    proposed = {token for turn in table.turns for token in turn.trace.head_ids.tolist()}
    assert proposed <= texts.pieces.keys()
    assert "‹" not in "".join(node.text for node in found.all("div", class_="text"))


def test_a_page_that_fails_costs_nothing_else(call_run, small, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("The page cannot be written: free some space.")

    monkeypatch.setattr(page, "write_run_page", full)
    ended = call_run(*small, "policy=fixed", f"results={tmp_path / 'r'}")
    assert ended.code == 2 and ended.err.splitlines()[-1].endswith("The page cannot be written: free some space.")
    assert ended.last_line["status"] == "ok" and "A page to look at" not in ended.out


def test_report_writes_the_page_of_a_run_and_of_a_table(call, tmp_path):
    code, out, _ = call("report", QWEN, "--out", tmp_path / "run", "--cost-ratio", "9")
    assert code == 0 and out.splitlines()[-1] == f"Page: {tmp_path / 'run' / 'report.html'}"
    assert "a target step costs 9.0 draft steps" in (tmp_path / "run" / "report.html").read_text()
    table = cut_answers(tmp_path / "acceptance.parquet", QWEN / "acceptance.parquet", {1})
    code, out, _ = call("report", tmp_path)
    assert code == 0 and out == f"Page: {tmp_path / 'report' / 'table.html'}\n" and parse(table.parent / "report/table.html")


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it to try the page")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


VISIBLE = "[...document.querySelectorAll('details[data-arm]')].filter(d => d.checkVisibility()).length"
CHOOSE = "(() => {{ const s = document.querySelector('select[name={0}]'); s.value = '{1}';"
CHOOSE += " s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"


@needs_browser
def test_in_a_browser_filters_hide_answers_and_nothing_complains(browser, nasty_run):
    browser.open(page.write_page(nasty_run))
    assert browser.evaluate(VISIBLE) == 8 * 3  # two questions of three tasks, one of them with two turns; three policies
    browser.evaluate(CHOOSE.format("arm", "gammatune-3"))
    assert browser.evaluate(VISIBLE) == 8
    browser.evaluate(CHOOSE.format("task", "translation"))
    assert browser.evaluate(VISIBLE) == 2
    assert browser.evaluate("document.getElementById('shown').textContent") == "2 answers"
    browser.evaluate("document.getElementById('unfold').click()")
    opened = "[...document.querySelectorAll('details[open]')].filter(d => d.checkVisibility()).length"
    assert browser.evaluate(opened) == 2
    browser.evaluate(CHOOSE.format("question", "0"))
    assert browser.evaluate(VISIBLE) == 0
    assert not browser.complaints() and not browser.requests()


@needs_browser
def test_in_a_browser_a_script_in_a_question_is_text(browser, nasty_run):
    browser.open(page.write_page(nasty_run))
    assert "<script>alert(1)</script>" in browser.evaluate("document.querySelector('blockquote').innerText")
    assert browser.evaluate("document.scripts.length") == 1 and browser.evaluate("document.images.length") == 0
    # nor would a script run that had got in
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert browser.evaluate("window.ran") is None


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_the_page_does_not_scroll_sideways(browser, tmp_path, dark):
    browser.open(page.write_run_page(read_run(QWEN), tmp_path / "report.html"), width=390, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    assert light is not dark


@needs_browser
def test_a_focused_round_tells_about_itself(browser, tmp_path):
    browser.open(page.write_run_page(read_run(QWEN), tmp_path / "report.html"))
    browser.evaluate("document.querySelector('.r').focus()")
    told = browser.evaluate("getComputedStyle(document.querySelector('.r'), '::after').content")
    assert told.startswith('"Round 1: gamma 3, drafted 3, accepted 3; draft ')


@needs_browser
def test_rejected_tokens_show_on_demand(browser, tmp_path):
    browser.open(page.write_run_page(read_run(QWEN), tmp_path / "report.html"))
    seen = "document.querySelector('details[open] s').checkVisibility()"
    assert browser.evaluate(seen) is False
    browser.evaluate("document.getElementById('instead').click()")
    assert browser.evaluate(seen) is True


@needs_browser
def test_a_line_is_copied_or_selected(browser, tmp_path):
    advice = json.loads(Path(__file__).with_name("advice.json").read_text())
    browser.open(page.write_advice_page(advice, None, tmp_path / "advice.html"))
    browser.evaluate("document.querySelector('.copy button').click()")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert browser.evaluate("document.querySelector('.copy button').textContent") in ("copied", "selected")
    assert not browser.complaints()


@needs_browser
def test_without_scripts_all_answers_show_and_no_dead_button(browser, nasty_run):
    browser.open(page.write_page(nasty_run), scripts=False)
    root = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
    found = browser.call("DOM.querySelectorAll", nodeId=root, selector="details[data-arm] .text")
    assert len(found["nodeIds"]) == 8 * 3
    assert browser.call("DOM.querySelector", nodeId=root, selector="form:not([hidden])")["nodeId"] == 0
    assert browser.call("DOM.querySelector", nodeId=root, selector="form[hidden]")["nodeId"] != 0

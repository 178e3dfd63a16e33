# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast report`: what the page says, that it is whole and asks for nothing, and that text stays text."""

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from patchrec_fast import Packer, Recommender, SessionPatches, Text, __version__, data
from patchrec_fast.cli.main import main
from patchrec_fast.evaluation import Report
from patchrec_fast.evaluation.profile import Profile
from patchrec_fast.layout import Catalogue, Prompt
from patchrec_fast.layout.config import PromptConfig
from patchrec_fast.models import tiny_model
from patchrec_fast.report import examples, page, savings
from patchrec_fast.report.names import told_apart
from patchrec_fast.report.plots import Series, plot
from patchrec_fast.report.savings import by_length
from patchrec_fast.report.sections import quality

pytest.importorskip("matplotlib")
pytest.importorskip("tokenizers")

EVIL = "<script>alert(1)</script>\"&' $x^{"
VOID = {"meta", "link", "br", "img", "path", "use", "rect"}


class Page(HTMLParser):
    """Text, tags and attributes; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def count(self, name):
        return sum(tag == name for tag, _ in self.seen)


def report(name, rows, policy="Text()", ranks=(1, 16, -1, 4), **changes):
    settings = {"policy": policy, "max_items": 100}
    made = Report(name, (10, 20), list(ranks), [0, 0, 1, 2], "same", 0, 0, rows, {"decode": 0.25}, 2**21, "x", settings)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def folder(tmp_path):
    """One of each input, as the other commands write them."""
    run = tmp_path / "run"
    run.mkdir()
    lines = [["step", "split", "loss", "tokens", "seconds"], [1, "train", 3.5, 1000, 1], [1, "val", 3.25, 1000, 1]]
    with (run / "curves.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    for name, made in (("text", report("t", 500.0)), ("pft", report(EVIL, 125.0, "SessionPatches(group=5)"))):
        (tmp_path / name).mkdir()
        made.save(tmp_path / name / "report.json")
    entries = [Profile(EVIL, 3, items, 2.0 * items, 1.0, 2.0, 3.0, 77.0, "resident")._asdict() for items in (5.0, 9.0)]
    (tmp_path / "profile.json").write_text(json.dumps({"compared": entries[:1], "growth": entries, "k": 20}))
    with (tmp_path / "compress.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["time", "cpu", "torch", "commit", "shape", "mode", "contestant", "median_ms", "ratio"],
                ["1", "C", "2", "c", "A", "forward", "patchrec_fast", "9.0", "0.5"],
                ["1", "C", "2", "c", "A", "dense", "patchrec_fast", "7.0", "3.0"],
                ["1", "C", "2", "c", "A", "dense", "embedding_bag", "21.0", "1.0"],
                ["2", "C", "2", "c", "A", "forward", "patchrec_fast", "8.0", "0.75"],
            ]
        )
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["cpu", "torch", "commit", "stage", "contestant", "median_ms", "ratio"],
                ["C", "2", "c", "text", "patchrec_fast", "1.0", "4.0"],
                ["C", "2", "c", "text", "stock", "4.0", "1.0"],
                ["C", "2", "c", "text", "part: packing", "0.1", "nan"],
            ]
        )
    return tmp_path


@pytest.fixture
def made(folder):
    """made(*flags): the page."""

    def call(*flags):
        assert main(["report", "--out", str(folder / "report.html"), *map(str, flags)]) == 0
        text = (folder / "report.html").read_text()
        return text, Page(text)

    return call


def everything(folder):
    evaluations = ["--evaluation", folder / "text", folder / "pft" / "report.json"]
    bench = ["--bench", folder / "compress.csv", folder / "train.csv"]
    return ["--run", folder / "run", *evaluations, "--profile", folder, *bench, "--title", EVIL]


def test_nothing_given(made):
    _, found = made()
    assert found.count("section") == 8
    assert found.text.count("Nothing was given") == 7
    assert found.count("svg") == 0
    assert found.count("table") == 1  # where it was made
    assert re.search(rf"patchrec_fast {re.escape(__version__)}, 20\d\d-\d\d-\d\d \d\d:\d\d UTC", found.text)
    assert f"torch {torch.__version__} " in found.text
    for command in ("report --data", "evaluate", "profile", "train", "bench --record"):
        assert f"patchrec-fast {command}" in found.text


def test_everything_given(made, folder):
    text, found = made(*everything(folder))
    assert found.text.count("Nothing was given") == 3  # no --data, no --model
    assert found.count("table") == 5 + 2  # how the evaluations were made, where the report was
    assert found.count("svg") == 1 + 2 + 2 + 2  # quality, cost, losses, benchmarks
    assert "4.00" in found.text  # 500 / 125 rows
    assert "0.7500 [" in found.text  # HR@20 of three hits in four
    assert "not finished" in found.text
    assert "6.00" in found.text  # 1 + 2 + 3 ms a user
    assert len(text) < 300_000


def test_what_is_lost_is_marked_and_the_last_record_counts(made, folder):
    text, found = made("--bench", folder / "compress.csv", folder / "train.csv")
    assert "compress: 2 cells, 1 of them lost" in found.text
    assert "train: 1 cells, 0 of them lost" in found.text
    assert "0.75x lost" in found.text
    assert "0.50x" not in found.text
    losing = re.findall(r'<tr class="loss">(.*?)</tr>', text)
    assert len(losing) == 1
    assert "0.75x" in losing[0]


def test_it_asks_for_nothing(made, folder):
    text, found = made(*everything(folder))
    for tag, attributes in found.seen:
        assert tag not in ("script", "img", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
    assert "http" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_text_from_outside_stays_text(made, folder):
    text, found = made(*everything(folder))
    assert "<script" not in text
    assert found.text.count("<script>alert(1)</script>\"&' $x^{") >= 5


def test_colours_are_the_page_s(made, folder):
    text, _ = made(*everything(folder))
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--c0)" in drawn
    assert "var(--ink)" in drawn
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#ffffff"}
    names = set(re.findall(r"var\((--\w+)\)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    for name in names:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_samples_that_differ_are_kept_apart(made, folder):
    report("other", 90.0, identity="other", ranks=(1, 2, 3, 4)).save(folder / "other.json")
    _, bare = made()
    _, found = made("--evaluation", folder / "text", folder / "other.json")
    assert found.count("table") - bare.count("table") == 2 + 1
    assert found.count("svg") == 2
    assert found.count("tr") - bare.count("tr") == 2 * 2 + 3  # a head and a report each; how both were made


def test_without_a_text_run_there_is_no_plot_and_a_reason(made, folder):
    _, found = made("--evaluation", folder / "pft")
    assert found.count("svg") == 0
    assert "Not drawn" in found.text


def test_what_json_printed_has_the_baselines(made, folder):
    popular = report("popularity", None, seconds=None, peak_memory=None, settings={})
    chance = dataclasses.replace(popular, name="chance", ranks=[-1] * 4)
    for name in ("one", "two"):
        baselines = [popular.to_dict(), chance.to_dict()]
        content = {"report": report(name, 9.0).to_dict(), "baselines": baselines, "compared": {}}
        (folder / f"{name}.json").write_text(json.dumps(content))
    _, found = made("--evaluation", folder / "one.json", folder / "two.json")
    assert found.text.count("popularity") == 2  # a row, and under the plot
    assert found.text.count("chance") == 1
    assert "The line is popularity, 0.7500" in found.text


def test_savings_are_counted_by_the_packer():
    dataset = data.generate(users=30, items=300)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    groups = list(by_length(dataset, tokenizer))
    assert sum(group.users for group in groups) == 30
    catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
    prompt = Prompt(tokenizer, instruction="Someone has chosen [HISTORY_SEQUENCE]. Which one will they choose next? "
                    "Answer with its title only.")  # fmt: skip
    lengths = np.diff(dataset.offsets)
    group = next(group for group in groups if group.name == "51 to 100")
    chosen = [
        dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]]
        for u in np.flatnonzero((lengths > 50) & (lengths <= 100))
    ]
    for name, policy in (("text", Text()), ("PFT-S, g = 5", SessionPatches(5))):
        rows = [Packer(catalogue, prompt, policy).pack([history]).max_seqlen for history in chosen]
        assert group.rows[name] == pytest.approx(np.mean(rows))
    assert group.items == pytest.approx(np.mean([len(history) for history in chosen]))
    assert len(savings(groups).tables[0].rows) == len(groups)


def test_groups_of_users_end_where_their_names_say():
    dataset = data.generate(users=4, items=60)
    lengths = np.array([20, 21, 50, 51])
    flat = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    cut = data.Dataset(flat, np.concatenate([[0], np.cumsum(lengths)]), dataset.titles, {})
    groups = list(by_length(cut, data.sample_tokenizer(dataset.titles.values())))
    assert [(group.name, group.users) for group in groups] == [("1 to 20", 1), ("21 to 50", 2), ("51 to 100", 1)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run", "pft"], "no such file, expected an output folder of patchrec-fast train"),
        (["--model", "run"], "--model: expected --data too"),
        (["--model", "run", "--data", "sample"], "patchrec.json"),
        (["--evaluation", "run"], "no such file, expected an output of patchrec-fast evaluate"),
        (["--profile", "nowhere"], "no such file, expected an output of patchrec-fast profile"),
        (["--evaluation", "profile.json"], "profile.json: not a report"),
        (["--evaluation", "compress.csv"], "compress.csv: not an output of patchrec-fast evaluate"),
        (["--profile", "text/report.json"], "report.json: not a profile"),
        (["--bench", "run/curves.csv"], "curves.csv: expected lines with a contestant"),
        (["--run", "text"], "curves.csv"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_old_report(folder, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(folder)
    (folder / "report.html").write_text("old")
    assert main(["report", "--out", "report.html", *flags]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert (folder / "report.html").read_text() == "old"


def test_more_series_than_colours_are_dashed():
    made = plot([Series(str(number), [1, 2], [number, 2]) for number in range(7)], "c", x="x", y="y")
    assert [dashed for _, dashed, _ in made.legend] == [False] * 6 + [True]
    assert "stroke-dasharray" in made.svg


def test_no_control_or_direction_mark_reaches_the_page(tmp_path):
    evil = "a\x1b[2J\x00\u202e\u2066\ud800b"
    page.write(tmp_path / "r.html", evil, [page.Section(evil, [evil], tables=[page.Table(evil, [evil], [[evil]])])])
    text = (tmp_path / "r.html").read_text()
    assert text.count(r"a\x1b[2J\x00\u202e\u2066\ud800b") == 9
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_page_of_no_section():
    assert Page(page.render("t", [])).count("section") == 0


def test_columns_that_say_nothing_are_left_out():
    """A table of two rankers without prompts has metrics alone, and what only one of them has stays."""
    plain = {"seconds": {}, "peak_memory": None}
    [table, *_] = quality([report("a", None, **plain), report("b", None, **plain)]).tables
    assert all(name == "" or "@" in name for name in table.head)
    assert {len(row) for row in table.rows} == {len(table.head)}
    [table, *_] = quality([report("a", 80.0), report("b", None, **plain)]).tables
    assert "rows a prompt" in table.head
    assert [row[table.head.index("rows a prompt")] for row in table.rows] == ["80.0", ""]


def test_evaluations_of_one_model_are_told_apart():
    one = report("pft", 9.0, policy="P")
    seen = dataclasses.replace(one, settings={**one.settings, "exclude_seen": True})
    short = dataclasses.replace(one, settings={**one.settings, "max_items": 50})
    alone = report("text", 9.0)
    names = [each.name for each in told_apart([one, alone, seen, short])]
    assert names == ["pft, max_items 100", "text", "pft, max_items 100, exclude_seen True", "pft, max_items 50"]
    again = dataclasses.replace(one, ranks=[1, 1, 1, 1])
    assert [each.name for each in told_apart([one, again])] == ["pft (1)", "pft (2)"]
    assert told_apart([alone]) == [alone]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder and its data, in own ids."""
    folder = tmp_path_factory.mktemp("trained")
    made = data.generate(users=14, items=60)
    ids = data.Ids(made.titles, [f"sku-{number}" for number in made.titles])
    people = data.Ids(range(14), [f"u{number:02}" for number in range(14)])
    made = dataclasses.replace(made, item_ids=ids, user_ids=people)
    text = "Seen [HISTORY_SEQUENCE]."
    sample = data.sample_tokenizer(made.titles.values())
    model, tokenizer = tiny_model(made.titles, sample, instruction=text, hidden=16, layers=1, heads=2)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = PromptConfig(text, policy=SessionPatches(5), max_items=20)
    settings.save(folder / "model")
    data.save(made, folder / "data")
    return folder, made, Recommender(model, settings.packer(made.titles, tokenizer))


def test_examples_are_what_the_model_recommends(trained):
    _, made, rec = trained
    last = np.max([made.splits[name][:, 1] for name in ("val", "test")], axis=0)
    there = np.flatnonzero(last > 0)
    found = examples(rec, made, users=3, k=4)
    assert len(found) == min(3, len(there))
    assert [each.user for each in found] == [f"u{there[at * len(there) // len(found)]:02}" for at in range(len(found))]
    for each in found:
        user = int(each.user[1:])
        items = made.items[made.offsets[user] :][: last[user] + 1].tolist()
        titles = [f"{made.titles[item]} (sku-{item})" for item in items]
        assert each.chosen == titles[-1]
        assert each.history == titles[:-1][-8:]
        assert each.earlier == len(items) - 1 - len(each.history)
        best = rec.recommend([items[:-1]], k=4, method="exact").items[0].tolist()
        assert each.recommended == [f"{made.titles[item]} (sku-{item})" for item in best]
        assert each.rank == (best.index(items[-1]) + 1 if items[-1] in best else None)


def test_a_model_and_a_card(trained, tmp_path):
    folder, made, _ = trained
    table = tmp_path / "log.csv"
    lines = [f"a{user},i{item},Title {item},{item}" for user in range(9) for item in range(12)]
    table.write_text("\n".join(["user,item,title,time", *lines]))
    assert main(["data", "prepare", "table", "--raw", str(table), "--out", str(tmp_path / "mine")]) == 0
    pages = []
    for flags in (
        ["--data", folder / "data", "--model", folder / "model", "--users", 2],
        ["--data", tmp_path / "mine"],
    ):
        assert main(["report", "--out", str(tmp_path / "r.html"), *map(str, flags)]) == 0
        pages.append(Page((tmp_path / "r.html").read_text()))
    assert "(sku-" in pages[0].text
    assert "what came next" in pages[0].text
    assert "Without a card.json" in pages[0].text
    assert f"users {len(made)} items" in pages[0].text
    assert "source table made by patchrec_fast" in pages[1].text
    assert "inputs: log.csv: bytes" in pages[1].text
    assert "(sku-" not in pages[1].text

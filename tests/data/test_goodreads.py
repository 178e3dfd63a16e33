# SPDX-License-Identifier: Apache-2.0
"""Goodreads's JSON lines, dates against the standard library, and what can be wrong with them."""

import gzip
import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from patchrec_fast.data import Goodreads, Rules, blocks, prepare
from patchrec_fast.data.dates import seconds
from tests.data.raw import book, interaction

pa = pytest.importorskip("pyarrow")


def write(folder, interactions, books=None, packed=True):
    books = [book("11"), book("12", " B "), book("13", "")] if books is None else books
    for name, lines in (("interactions_comics", interactions), ("books_comics", books)):
        text = "".join(line + "\n" for line in lines).encode()
        path = folder / f"goodreads_{name}.json{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(text) if packed else text)
    return folder


LINES = [
    interaction("b", "12", 5, "Fri Aug 25 13:55:02 -0700 2017"),
    interaction("a", "11", 3),
    interaction("b", "11", 5, "Fri Aug 25 21:55:01 +0100 2017"),
    interaction("b", "13", 0),
]


@pytest.mark.parametrize("size", [None, 100])
@pytest.mark.parametrize("packed", [True, False])
def test_read(tmp_path, packed, size, monkeypatch):
    if size:
        monkeypatch.setattr(blocks.blocks, "__defaults__", (size,))
    got = prepare(Goodreads(write(tmp_path, LINES, packed=packed)), Rules(above_rating=4))
    assert list(got.dataset.user_ids) == ["b"]
    assert got.dataset.items.tolist() == [11, 12]  # a second earlier, in another zone
    assert got.dataset.titles == {11: "A Title (Series, #1)", 12: "B"}
    assert got.dataset.item_ids.same


def test_an_empty_title_is_none(tmp_path):
    source = write(tmp_path, LINES)
    with pytest.raises(ValueError, match="1 of 3 items have no title, as 13"):
        prepare(Goodreads(source), Rules())
    assert sorted(prepare(Goodreads(source), Rules(untitled="drop")).dataset.titles) == [11, 12]


def test_ids_that_are_no_numbers_are_numbered(tmp_path):
    lines = [interaction(book="0x1"), interaction(book="11", date="Fri Aug 25 13:55:03 -0700 2017")]
    got = prepare(Goodreads(write(tmp_path, lines, [book("11"), book("0x1", "X")])), Rules())
    assert got.dataset.items.tolist() == [0, 1]
    assert got.dataset.titles == {0: "X", 1: "A Title (Series, #1)"}
    assert list(got.dataset.item_ids) == ["0x1", "11"]


def test_the_other_date(tmp_path):
    lines = [
        interaction(book=number, date_updated=f"Fri Aug 25 13:55:0{n} -0700 2017")
        for number, n in (("11", 5), ("12", 2))
    ]
    write(tmp_path, lines)
    assert prepare(Goodreads(tmp_path), Rules()).dataset.items.tolist() == [11, 12]
    assert prepare(Goodreads(tmp_path, "date_updated"), Rules()).dataset.items.tolist() == [12, 11]
    with pytest.raises(ValueError, match="time: expected one of"):
        Goodreads(tmp_path, "read_at")


def test_dates_against_the_standard_library():
    rng = np.random.default_rng(0)
    moments = [
        datetime.fromtimestamp(int(second), UTC).astimezone(timezone(timedelta(minutes=int(minutes))))
        for second, minutes in zip(rng.integers(-(10**9), 4 * 10**9, 2000), rng.integers(-720, 840, 2000), strict=True)
    ]
    texts = [moment.strftime("%a %b %d %H:%M:%S %z %Y") for moment in moments]
    got = seconds(pa.chunked_array([texts[:7], texts[7:]]))
    assert got.tolist() == [int(moment.timestamp()) for moment in moments]
    assert seconds(pa.chunked_array([pa.array(texts).slice(5)])).tolist() == got[5:].tolist()


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"user_id": "a"}',
        interaction(user=None),
        interaction(book=11),
        interaction(rating="5"),
        interaction(rating=4.5),
        interaction()[:-9],
    ],
)
def test_a_bad_line_is_named(tmp_path, line):
    with pytest.raises(
        ValueError, match=r"goodreads_interactions_comics\.json\.gz: line 3 is .*, expected a JSON object"
    ):
        prepare(Goodreads(write(tmp_path, [*LINES[:2], line, *LINES[2:]])), Rules(untitled="drop"))


@pytest.mark.parametrize(
    "date",
    [
        "",
        "Fri Abc 25 13:55:02 -0700 2017",
        "Fri ugS 25 13:55:02 -0700 2017",
        "Fri Aug 2x 13:55:02 -0700 2017",
        "Fri Aug 00 13:55:02 -0700 2017",
        "Fri Aug 32 13:55:02 -0700 2017",
        "Fri Aug 25 24:55:02 -0700 2017",
        "Fri Aug 25 13:60:02 -0700 2017",
        "Fri Aug 25 13:55:61 -0700 2017",
        "Fri Aug 25 13:55:02 -07x0 2017",
        "Fri Aug 25 13:55:02 *0700 2017",
        "Fri Aug 25 13:55:02 -0700 x017",
        "Fri Aug 25 13:55:02 -0700 2017 ",
        "2017-08-25T13:55:02Z",
    ],
)
def test_a_bad_date_is_named(tmp_path, date):
    with pytest.raises(ValueError, match=r"goodreads_interactions_comics\.json\.gz: line 4: ") as raised:
        prepare(Goodreads(write(tmp_path, [*LINES[:2], "", interaction(date=date), *LINES[2:]])), Rules())
    assert f"date_added is {date!r}, expected a date like 'Fri Aug 25 13:55:02 -0700 2017'" in str(raised.value)


@pytest.mark.parametrize("line", ["{", json.dumps({"book_id": "5"}), book(title=None), book(number=5)])
def test_a_bad_book_is_named(tmp_path, line):
    with pytest.raises(ValueError, match=r"goodreads_books_comics\.json\.gz: line 2 is .*, expected a JSON object"):
        prepare(Goodreads(write(tmp_path, LINES, [book("11"), line, book("12")])), Rules(untitled="drop"))


@pytest.mark.parametrize("name", ["interactions", "books"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-9], "the compressed file is cut short"),
        (lambda data: data[: len(data) // 2], "the compressed file is cut short"),
        (lambda data: b"no gzip", "not compressed by gzip, it begins with b'no gzip'"),
    ],
)
def test_a_damaged_archive(tmp_path, name, damage, said):
    file = write(tmp_path, LINES) / f"goodreads_{name}_comics.json.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file.name}: {said}"):
        prepare(Goodreads(tmp_path), Rules(untitled="drop"))


def test_files_missing_or_too_many(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file goodreads_interactions"):
        Goodreads(tmp_path)
    write(tmp_path, LINES)
    write(tmp_path, LINES, packed=False)
    with pytest.raises(ValueError, match="expected one file goodreads_interactions"):
        Goodreads(tmp_path)


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(blocks.blocks, "__defaults__", (300,))
    with pytest.raises(ValueError, match="line 2 is longer than 64 MiB"):
        prepare(Goodreads(write(tmp_path, [LINES[0], "x" * 5000])), Rules())


def test_what_arrow_refuses_is_read_line_by_line(tmp_path):
    """Lone surrogates outside of ids, and keys that come twice with one value."""
    lines = [
        interaction("a", "11"),
        interaction("b", "12", review="\ud800 and \udfff"),  # json writes them as escapes
        '{"x": 1, "x": 2, ' + interaction("c", "11")[1:],
        interaction("c", "12")[:-1] + ', "user_id": "c"}',
        "",
    ]
    books = [book("11", "A\ud83d B\x1b[2J\n"), book("12", "C \U0001f600"), book("13", "\udc00")]
    got = prepare(Goodreads(write(tmp_path, lines, books)), Rules())
    assert list(got.dataset.user_ids) == ["a", "b", "c"]
    assert got.dataset.items.tolist() == [11, 12, 11, 12]
    assert got.dataset.titles == {11: "A B[2J", 12: "C \U0001f600"}
    assert got.tallies["control characters and spaces"].count == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (interaction("\ud800"), r"has user_id '\\ud800'"),
        (interaction(book="1\udc00"), r"has book_id '1\\udc00'"),
        (interaction()[:-1] + ', "user_id": "other"}', "has user_id twice, 'u1' and 'other'"),
        (interaction()[:-1] + ', "rating": 3}', "has rating twice, 5 and 3"),
        (interaction(rating=2**63), f"has rating {2**63}"),
        (interaction(rating=True), "has rating True"),
        ('{"user_id": ' + "[" * 100_000, "RecursionError"),
    ],
)
def test_a_line_that_is_ambiguous_is_named(tmp_path, line, said):
    with pytest.raises(
        ValueError, match=rf"goodreads_interactions_comics\.json\.gz: line 2 is .*, {said}.*, expected a"
    ):
        prepare(Goodreads(write(tmp_path, [LINES[0], line, *LINES[1:]])), Rules(untitled="drop"))


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80"])
def test_bytes_that_are_not_utf8(tmp_path, text):
    for name in ("interactions", "books"):
        file = write(tmp_path, LINES, packed=False) / f"goodreads_{name}_comics.json"
        file.write_bytes(file.read_bytes().replace(b'"12"', b'"1%s"' % text, 1))
        with pytest.raises(ValueError, match=f"{file.name}: line [12] is .*UnicodeDecodeError, expected"):
            prepare(Goodreads(tmp_path), Rules(untitled="drop"))


def test_blank_lines_only(tmp_path):
    with pytest.raises(ValueError, match="no interactions"):
        prepare(Goodreads(write(tmp_path, ["", " ", ""])), Rules())

# SPDX-License-Identifier: Apache-2.0
"""The journal: what is kept after a kill at any byte."""

import pytest

from patchrec_fast.evaluate.journal import Journal

HEADER = {"model": "a", "k": 20}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "batches.jsonl"


def write(path, entries, header=HEADER):
    with Journal(path, header) as journal:
        for entry in entries:
            journal.append(entry)


def test_entries_come_back(path):
    write(path, [{"ranks": [1, -1]}, {"ranks": []}])
    write(path, [{"ranks": [2]}])
    with Journal(path, HEADER) as journal:
        assert journal.entries == [{"ranks": [1, -1]}, {"ranks": []}, {"ranks": [2]}]


def test_cut_at_every_byte(path):
    """What was whole is kept, and what comes then is as in a run without a kill."""
    write(path, [{"ranks": [1]}, {"ranks": [2]}])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        with Journal(path, HEADER) as journal:
            assert len(journal.entries) == max(lines - 1, 0)
            for rank in range(len(journal.entries) + 1, 3):
                journal.append({"ranks": [rank]})
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"notes of mine", b"notes\nof mine\n", b'{"model"\n', b"\xff\xfe\n", b"[1]\n"])
def test_another_file_is_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"batches.jsonl"):
        Journal(path, HEADER)
    assert path.read_bytes() == content


def test_the_difference_is_named(path):
    write(path, [])
    with pytest.raises(ValueError, match="k 20 and not 10"):
        Journal(path, {**HEADER, "k": 10})
    with pytest.raises(ValueError, match="seed None and not 1"):
        Journal(path, {**HEADER, "seed": 1})

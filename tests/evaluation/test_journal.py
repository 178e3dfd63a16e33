# SPDX-License-Identifier: Apache-2.0
"""The journal: what is kept after a kill at any byte."""

import json
import os
import resource
import signal
import time

import pytest

from patchrec_fast.evaluation.journal import Journal
from patchrec_fast.evaluation.run import _ENTRY

HEADER = {"model": "a", "k": 20}
ENTRY = {"begin": 0, "ranks": [1], "rows": 2, "seconds": {"pack": 0.5}, "peak_memory": 3, "memory_kind": "resident"}


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


def test_another_run_may_have_a_folder_that_was_killed_before_its_first_line(path):
    write(path, [])
    path.write_bytes(path.read_bytes()[:-1])
    write(path, [], {**HEADER, "k": 10})
    with pytest.raises(ValueError, match="k 10 and not 20"):
        Journal(path, HEADER)


@pytest.mark.parametrize(
    "line",
    ["5", "{}", "null", "[" * 100_000, '{"begin": NaN}']
    + [
        json.dumps({**ENTRY, name: value})
        for name in ENTRY
        for value in (None, {"a": "x"}, ["x"], [[1]], 1e400, True)
        if (name, value) != ("rows", None)  # of a recommender without a language model
    ],
)
def test_a_damaged_line_is_named(path, line):
    write(path, [ENTRY])
    before = path.read_bytes() + line.encode() + b"\n"
    path.write_bytes(before)
    with pytest.raises(ValueError, match=r"batches\.jsonl: line 3: not a journal of an evaluation, or damaged"):
        Journal(path, HEADER, _ENTRY)
    assert path.read_bytes() == before


def test_one_run_at_a_time(path):
    with Journal(path, HEADER):
        with pytest.raises(ValueError, match=f"another run is writing in {path.parent} now"):
            Journal(path, HEADER)
        begun, begins = os.pipe()
        pid = os.fork()  # a data loader's worker, say, that outlives it
        if not pid:
            os.write(begins, b".")
            time.sleep(60)
        os.read(begun, 1)
    try:
        write(path, [])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_full_disk(path):
    """A file that may not grow beyond its first lines; what is there stays."""
    write(path, [ENTRY])
    before = path.read_bytes()
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10,) * 2)
        with Journal(path, HEADER) as journal:
            try:
                journal.append(ENTRY)
            except OSError as error:
                os._exit(error.filename == str(path))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    with Journal(path, HEADER) as journal:
        assert journal.entries == [ENTRY]
    assert path.read_bytes() == before


def test_the_difference_is_named(path):
    write(path, [])
    with pytest.raises(ValueError, match="k 20 and not 10"):
        Journal(path, {**HEADER, "k": 10})
    with pytest.raises(ValueError, match="seed None and not 1"):
        Journal(path, {**HEADER, "seed": 1})

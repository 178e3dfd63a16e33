# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, with the user's own mode, and what a killed process leaves."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from patchrec_fast import _files

# without the package, which takes seconds to import
KILLED = f"""
import os, runpy, signal, sys
replacing = runpy.run_path({_files.__file__!r})["replacing"]
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    {{}}
"""


def mode(path):
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o000])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        _files.write(tmp_path / "folder" / "ours", "x")
        (tmp_path / "folder" / "plain").write_text("x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "folder" / "ours") == mode(tmp_path / "folder" / "plain") == 0o666 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_was_there_keeps_its_mode(tmp_path, kept):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(kept)
    _files.write(path, "new")
    assert (path.read_text(), mode(path)) == ("new", kept)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere/file")
    for text in ("first", "second"):  # of nothing, then of a file
        _files.write(link, text)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "file").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OSError, match=f"there already, and not a file: .*{name}'"):
            _files.write(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
    assert (tmp_path / "folder").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        _files.write(tmp_path / "file" / "in it", "x")


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path, there):
    path = tmp_path / "file.txt"
    if there:
        path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses a byte more, as it does on a full disk
    try:
        with pytest.raises(OSError, match=r"File too large: .*/file\.txt'") as raised:
            _files.write(path, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"] * there
    assert not there or path.read_text() == "old"


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="another") as raised, _files.replacing(tmp_path / "file"):
        (tmp_path / "another").read_text()
    assert raised.value.filename == str(tmp_path / "another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file.npz", "[a]*?.txt", "x" * 250, ".hidden"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, name):
    child = [sys.executable, "-c", KILLED.format("os.kill(os.getpid(), signal.SIGKILL)"), str(tmp_path / name)]
    subprocess.run(child, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    _files.write(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_temporary_file_of_a_living_process_stays(tmp_path):
    path = tmp_path / "file"
    child = [sys.executable, "-c", KILLED.format("print(); sys.stdout.flush(); input()"), str(path)]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with _files.replacing(path) as temporary:
            _files.write(path, "a write in between")
            assert len(list(tmp_path.iterdir())) == 3
            temporary.write_text("this one")
        assert path.read_text() == "this one"
        process.communicate("\n")
    assert process.returncode == 0
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]

# SPDX-License-Identifier: Apache-2.0
"""Archives that mean harm."""

import errno
import os
import stat
import zipfile
from pathlib import Path

import pytest

from patchrec_fast.data import archive
from patchrec_fast.data.archive import unpack


def pack(folder, members, compression=zipfile.ZIP_DEFLATED):
    file = folder / "a.zip"
    with zipfile.ZipFile(file, "w", compression) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return file


def link(name, kind=stat.S_IFLNK):
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


GOOD = [("ml/", ""), ("ml/a.txt", "one"), ("ml/deep/b.txt", "two" * 1000)]


def nothing_new(folder):
    return [path.name for path in folder.iterdir()] == ["a.zip"]


def test_unpack(tmp_path):
    told = []
    found = unpack(pack(tmp_path, [*GOOD, ("__MACOSX/ml/x", "junk")]), "ml", tmp_path, told.append)
    assert found == tmp_path / "ml"
    assert {str(path.relative_to(found)): path.read_text() for path in found.rglob("*") if path.is_file()} == {
        "a.txt": "one",
        "deep/b.txt": "two" * 1000,
    }
    assert sum(told) == 3003
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "ml"]
    with pytest.raises(FileExistsError, match="there already"):
        unpack(tmp_path / "a.zip", "ml", tmp_path)


@pytest.mark.parametrize(
    "name", ["../out.txt", "ml/../../out.txt", "/out.txt", "ml\\..\\..\\out.txt", "c:/out.txt", "ml/..", ".", ""]
)
def test_paths_that_lead_out(tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    file = pack(inner, [*GOOD, (zipfile.ZipInfo(name), "bad")])
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack(file, "ml", inner)
    assert nothing_new(inner)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path, kind):
    with pytest.raises(ValueError, match="'ml/link' is a link or a device"):
        unpack(pack(tmp_path, [*GOOD, (link("ml/link", kind), "/etc/passwd")]), "ml", tmp_path)
    assert nothing_new(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["ml/a.txt", "ml//a.txt", "ml/./a.txt"])
def test_a_member_that_comes_twice(tmp_path, name):
    file = pack(tmp_path, [*GOOD, (name, "again")])
    with pytest.raises(ValueError, match="comes twice"):
        unpack(file, "ml", tmp_path)
    assert nothing_new(tmp_path)


def test_too_many_bytes(tmp_path):
    file = pack(tmp_path, [("ml/bomb", b"\0" * 10_000_000)])
    assert file.stat().st_size < 20_000
    with pytest.raises(ValueError, match="would unpack to 10,000,000 bytes, expected at most 9,999,999"):
        unpack(file, "ml", tmp_path, largest=9_999_999)
    assert nothing_new(tmp_path)


def test_a_member_that_lies_about_its_size(tmp_path):
    file = pack(tmp_path, [("ml/bomb", b"\0" * 1_000_000)])
    true, told = (size.to_bytes(4, "little") for size in (1_000_000, 1000))
    file.write_bytes(file.read_bytes().replace(true, told))
    with pytest.raises(ValueError, match="not a readable zip archive"):
        unpack(file, "ml", tmp_path, largest=5000)
    assert nothing_new(tmp_path)


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    with pytest.raises(ValueError, match="3 members, expected at most 2"):
        unpack(pack(tmp_path, GOOD), "ml", tmp_path)


def test_another_folder(tmp_path):
    with pytest.raises(ValueError, match="no folder 'other' in the archive"):
        unpack(pack(tmp_path, GOOD), "other", tmp_path)
    assert nothing_new(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "empty"])
def test_a_damaged_archive(tmp_path, damage):
    file = pack(tmp_path, [("ml/a", os.urandom(5000))], zipfile.ZIP_STORED)
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes({"cut": data[:-30], "text": b"<html>" * 50, "flipped": data, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"a\.zip: not a readable zip archive"):
        unpack(file, "ml", tmp_path)
    assert nothing_new(tmp_path)


def test_a_full_disk(tmp_path, monkeypatch):
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, piece):
            self.file.write(piece[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        Path, "open", lambda path, mode="r": Full(opened(path, mode)) if mode == "xb" else opened(path, mode)
    )
    with pytest.raises(OSError, match="No space left"):
        unpack(pack(tmp_path, GOOD), "ml", tmp_path)
    assert nothing_new(tmp_path)


def test_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / ".ml.part" / "ml").mkdir(parents=True)
    (tmp_path / ".ml.part" / "ml" / "old").write_text("half")
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml/new", "whole")
    folder = unpack(tmp_path / "ml.zip", "ml", tmp_path)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml", "ml.zip"]


def test_a_name_that_is_not_utf8(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml/é", "x")
    data = (tmp_path / "ml.zip").read_bytes()
    (tmp_path / "ml.zip").write_bytes(data.replace("é".encode(), b"\xff\xff"))
    with pytest.raises(ValueError, match=r"ml\.zip: not a readable zip archive"):
        unpack(tmp_path / "ml.zip", "ml", tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Random damage to the files of every reader: an error that names the file, and no other kind.

`DAMAGED=20000 python -m pytest tests/data/test_damaged_inputs.py` for as long as one likes.
"""

import gzip
import os
import random
import shutil
import zipfile

import pytest

from patchrec_fast.data import Columns, Goodreads, MovieLens, Rules, generate, load, prepare, save
from patchrec_fast.data.archive import unpack
from tests.data.raw import LAYOUTS, book, interaction, movielens

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROUNDS = int(os.environ.get("DAMAGED", 60))
RULES = Rules(untitled="drop")
JUNK = (b"\0", b"\xff\xfe", b'"', b"\n", b"\r", b",", b"{", b"}", b"[" * 9999, b"-1", b"9" * 30, b"1e999", b"nan",
        b"\xed\xa0\x80", b"\\ud800", b"x" * 200_000, b"::", b"|", b"\t", b"null", b"\xef\xbb\xbf", b" ")  # fmt: skip
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
# what is right of a file that cannot be told from a good one
FEW = ("no interactions are left", "have no title")


def damaged(rng, data):
    kind = rng.randrange(8)
    place, length = rng.randrange(len(data) + 1), rng.randrange(20)
    if kind == 0:
        return data[:place]
    if kind == 1:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(changed)
    if kind == 2:
        return rng.randbytes(rng.randrange(500))
    if kind == 3:
        try:
            return data.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1"]))
        except UnicodeError:
            return data[::-1]
    if kind == 4:
        return data[:place] + data[place + length :]
    return data[:place] + rng.choice(JUNK) + data[place + length % 3 :]


def goodreads(folder, packed):
    folder.mkdir()
    texts = {"interactions": [interaction(f"u{n % 3}", f"{10 + n % 5}") for n in range(12)],
             "books": [book(f"{10 + n}", f"T{n}") for n in range(5)]}  # fmt: skip
    for name, lines in texts.items():
        text = "".join(f"{line}\n" for line in lines).encode()
        file = folder / f"goodreads_{name}.json{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(text) if packed else text)


def columns(folder, kind):
    folder.mkdir()
    rows = [(f"u{n % 3}", n % 7, f'T, "{n % 7}"', n, 1.5) for n in range(30)]
    names = ("user", "item", "title", "time", "rating")
    if kind == ".parquet":
        pq.write_table(
            pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "a.parquet"
        )
        return
    lines = [
        ",".join(names),
        *(f'{user},{item},"T, ""{item}""",{time},{rating}' for user, item, _, time, rating in rows),
    ]
    text = "".join(f"{line}\n" for line in lines).encode()
    (folder / f"a{kind}").write_bytes(gzip.compress(text) if kind == ".csv.gz" else text)


def zipped(folder, packing):
    folder.mkdir()
    with zipfile.ZipFile(folder / "ml.zip", "w", packing) as archive:
        archive.writestr("ml/ratings.csv", "1,2,3,4\n" * 200)
        archive.writestr("ml/movies.csv", "abc")


READERS = {
    **{f"movielens {layout}": (lambda folder, layout=layout: movielens(folder, layout),
                               lambda folder: prepare(MovieLens(folder), RULES)) for layout in LAYOUTS},
    **{f"goodreads {packed}": (lambda folder, packed=packed: goodreads(folder, packed),
                               lambda folder: prepare(Goodreads(folder), RULES)) for packed in (True, False)},
    **{f"table {kind}": (lambda folder, kind=kind: columns(folder, kind),
                         lambda folder, kind=kind: prepare(Columns(folder / f"a{kind}", rating="rating"), RULES))
       for kind in (".csv", ".csv.gz", ".parquet")},
    **{f"zip {packing}": (lambda folder, packing=packing: zipped(folder, packing),
                          lambda folder: unpack(folder / "ml.zip", "ml", folder)) for packing in PACKINGS},
    "prepared": (lambda folder: save(generate(1, 20, 30), folder), load),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_damage(tmp_path, reader):
    make, read = READERS[reader]
    make(tmp_path / "good")
    read(shutil.copytree(tmp_path / "good", tmp_path / "copy"))
    rng, refused = random.Random(reader), 0
    for number in range(ROUNDS):
        shutil.rmtree(tmp_path / "copy")
        file = rng.choice(sorted(shutil.copytree(tmp_path / "good", tmp_path / "copy").iterdir()))
        if number == 0:  # a folder in its place
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(damaged(rng, file.read_bytes()) if number > 1 else b"")
        try:
            read(tmp_path / "copy")
        except (ValueError, FileNotFoundError, IsADirectoryError) as error:
            said = str(error)
            assert str(tmp_path / "copy") in said or any(few in said for few in FEW), said
            refused += 1
    assert refused > ROUNDS // 5

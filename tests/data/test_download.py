# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server on this machine that breaks off, ignores ranges, or sends something else."""

import errno
import hashlib
import io
import os
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from patchrec_fast.data import download

command = sys.modules[download.__module__]  # the function hides its module


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("ml-1m/ratings.dat", os.urandom(200_000))
    return buffer.getvalue()


class Server:
    """Serves one archive; `breaks` holds after how many bytes of each coming reply the connection ends."""

    def __init__(self, data):
        self.data, self.md5 = data, hashlib.md5(data).hexdigest()
        self.ranges, self.declare, self.code, self.shift = True, True, None, 0
        self.breaks, self.asked = [], []
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/ml-1m.zip.md5":
                    return self.reply(200, f"MD5 (ml-1m.zip) = {state.md5}\n".encode())
                if self.path != "/ml-1m.zip":
                    return self.send_error(404)
                wanted = self.headers["Range"]
                state.asked.append(wanted)
                if state.code:
                    return self.send_error(state.code)
                if not (wanted and state.ranges):
                    return self.reply(200, state.data)
                begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(state.data):
                    return self.send_error(416)
                begin += state.shift
                return self.reply(206, state.data[begin:], f"bytes {begin}-{len(state.data) - 1}/{len(state.data)}")

            def reply(self, code, body, sent=None):
                self.send_response(code)
                if state.declare or len(body) < 100:
                    self.send_header("Content-Length", str(len(body)))
                if sent:
                    self.send_header("Content-Range", sent)
                self.end_headers()
                stop = state.breaks.pop(0) if state.breaks and len(body) > 100 else len(body)
                self.wfile.write(body[:stop])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    running = Server(archive())
    yield running
    running.close()


class Bar:
    """Counts like tqdm's."""

    def __init__(self):
        self.n, self.total = 0, None

    def update(self, n=1):
        self.n += n

    def reset(self, total=None):
        self.n, self.total = 0, total


def fetch(server, folder, **options):
    return download("ml-1m", folder, url=server.url, wait=0, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def whole(server, folder):
    assert names(folder) == ["ml-1m", "ml-1m.zip"]
    assert (folder / "ml-1m.zip").read_bytes() == server.data
    return names(folder / "ml-1m") == ["ratings.dat"]


def test_all_at_once(server, tmp_path):
    bar = Bar()
    out = tmp_path / "new" / "raw"
    assert fetch(server, out, bar=bar) == out / "ml-1m"
    assert whole(server, out)
    assert bar.n == bar.total == len(server.data)
    assert server.asked == [None]
    assert fetch(server, out) == out / "ml-1m"
    assert server.asked == [None]  # nothing is fetched again


def test_the_archive_is_there_already(server, tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(server.data)
    fetch(server, tmp_path)
    assert server.asked == []
    assert whole(server, tmp_path)


def test_an_older_archive_is_replaced(server, tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(b"older")
    fetch(server, tmp_path)
    assert whole(server, tmp_path)


def test_broken_connections_are_resumed(server, tmp_path):
    server.breaks = [70_000, 0, 50_000]
    bar = Bar()
    fetch(server, tmp_path, bar=bar)
    assert whole(server, tmp_path)
    assert server.asked == [None, "bytes=70000-", "bytes=70000-", "bytes=120000-"]
    assert bar.n == bar.total == len(server.data) - 120_000


def test_a_broken_download_is_resumed_by_the_next_call(server, tmp_path):
    server.breaks = [70_000, 10_000]
    with pytest.raises(OSError, match=r"broke 2 times .*80,000 bytes are kept in .*part, the same command goes on"):
        fetch(server, tmp_path, attempts=2)
    assert names(tmp_path) == ["ml-1m.zip.part"]
    assert (tmp_path / "ml-1m.zip.part").read_bytes() == server.data[:80_000]
    fetch(server, tmp_path)
    assert server.asked[2:] == ["bytes=80000-"]
    assert whole(server, tmp_path)


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges = False
    server.breaks = [70_000]
    fetch(server, tmp_path)
    assert server.asked == [None, "bytes=70000-"]
    assert whole(server, tmp_path)


def test_a_server_that_sends_another_range(server, tmp_path):
    server.breaks, server.shift = [70_000], 5
    with pytest.raises(OSError, match="asked for the bytes from 70000, got 'bytes 70005-"):
        fetch(server, tmp_path, attempts=3)
    assert (tmp_path / "ml-1m.zip.part").read_bytes() == server.data[:70_000]


def test_a_part_that_is_whole(server, tmp_path):
    (tmp_path / "ml-1m.zip.part").write_bytes(server.data)
    fetch(server, tmp_path)
    assert whole(server, tmp_path)


@pytest.mark.parametrize("part", [b"of something else", b"x" * 300_000])
def test_a_wrong_checksum_removes_the_file(server, tmp_path, part):
    (tmp_path / "ml-1m.zip.part").write_bytes(part)
    with pytest.raises(ValueError, match=f"published is {server.md5}; the file was removed"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []
    fetch(server, tmp_path)
    assert whole(server, tmp_path)


def test_a_reply_without_a_length_that_is_cut(server, tmp_path):
    server.declare, server.breaks = False, [70_000]
    with pytest.raises(ValueError, match="MD5 is"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_refuses(server, tmp_path):
    server.code = 403
    with pytest.raises(OSError, match=r"ml-1m\.zip: HTTP Error 403"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.code = 503
    with pytest.raises(OSError, match=r"broke 3 times \(HTTP Error 503"):
        fetch(server, tmp_path, attempts=3)
    assert len(server.asked) == 3


def test_no_checksum(server, tmp_path):
    server.md5 = "<html>"
    with pytest.raises(ValueError, match="expected an MD5, got"):
        fetch(server, tmp_path)
    with pytest.raises(OSError, match=r"ml-100k\.zip\.md5: HTTP Error 404"):
        download("ml-100k", tmp_path, url=server.url)


def test_no_server(tmp_path):
    with pytest.raises(OSError, match="refused"):
        download("ml-1m", tmp_path, url="http://127.0.0.1:9")


def test_a_full_disk_keeps_what_fits(server, tmp_path, monkeypatch):
    class Full:
        def write(self, piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    append = command._append
    monkeypatch.setattr(command, "_PIECE", 50_000)
    pieces = []

    def two_fit(file, piece, part):
        pieces.append(len(piece))
        append(file if len(pieces) < 3 else Full(), piece, part)

    monkeypatch.setattr(command, "_append", two_fit)
    with pytest.raises(OSError, match=r"No space left on device; what fits is kept.*ml-1m\.zip\.part"):
        fetch(server, tmp_path)
    assert names(tmp_path) == ["ml-1m.zip.part"]
    monkeypatch.setattr(command, "_append", append)
    fetch(server, tmp_path)
    assert server.asked == [None, f"bytes={sum(pieces[:2])}-"]
    assert whole(server, tmp_path)


def test_a_file_that_takes_a_part_of_a_piece(tmp_path):
    taken = bytearray()

    class Slow:
        def write(self, left):
            taken.extend(left[:7])
            return min(7, len(left))

    command._append(Slow(), b"0123456789" * 5, tmp_path)
    assert taken == b"0123456789" * 5


@pytest.mark.parametrize(("name", "options"), [("ml-2m", {}), ("../x", {}), ("ml-1m", {"attempts": 0})])
def test_arguments(tmp_path, name, options):
    with pytest.raises(ValueError, match=r"(name|attempts): expected"):
        download(name, tmp_path, **options)

# SPDX-License-Identifier: Apache-2.0
"""Folders that are not there, and names of the hub: told apart, and said at once."""

import shutil
import time
from types import SimpleNamespace

import pytest

from patchrec_fast import _folders
from patchrec_fast._folders import check_folder, is_local, on_hub


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    for name in ("runs/text", "runs/pft-s", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    _folders._answers.cache_clear()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/txt", "no folder runs/txt, did you mean runs/text?"),
        ("runs/pfts", "no folder runs/pfts, did you mean runs/pft-s?"),
        ("run/text", "no folder run/text, did you mean runs?"),
        ("dat", "no folder dat, did you mean data?"),
        ("/nowhere/at/all", "no folder /nowhere/at/all"),
        ("elsewhere", "no folder elsewhere"),
        ("file", "file is a file, expected a folder"),
        ("file/under", "no folder file/under"),
    ],
)
def test_the_nearest_folders_are_named(name, said):
    with pytest.raises(OSError, match="fold") as raised:
        check_folder(name)
    assert str(raised.value) == said
    check_folder("runs/text")


def test_what_can_only_be_a_name_of_the_hub():
    assert on_hub("meta-llama/Llama-3.2-1B")
    for name in (
        "gpt2",
        "runs/typo",
        "./runs",
        "../a",
        "~/models",
        "/a/b",
        "a/b/c",
        "a/b/",
        "a b/c",
        "",
        ".hidden/model",
    ):
        assert not on_hub(name)
    check_folder("meta-llama/Llama-3.2-1B", hub=True)
    for name in ("runs/typo", "gpt2"):
        with pytest.raises(FileNotFoundError, match=f"no folder {name}.*owner/name"):
            check_folder(name, hub=True)


def test_the_hub_is_asked_once_and_briefly(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def model_info(_, name, timeout):
        asked.append(name)
        assert timeout <= 10
        if name == "no/network":
            raise ConnectionError("Name or service not known\nand more")
        if name == "no/such":
            answer = SimpleNamespace(headers={}, request=None, status_code=404)
            raise hub.errors.RepositoryNotFoundError("404", response=answer)

    monkeypatch.setattr(hub.HfApi, "model_info", model_info)
    assert not is_local("some/model", True, "model")
    assert not is_local("some/model", True, "model")
    assert asked == ["some/model"]
    with pytest.raises(
        OSError, match=r"^model: no folder no/network, and the hub does not answer \(ConnectionError: Name"
    ):
        is_local("no/network", True, "model")
    with pytest.raises(FileNotFoundError, match="none of that name on the hub"):
        is_local("no/such", True, "model")
    assert is_local("runs/text", True, "model")
    with pytest.raises(FileNotFoundError, match="no folder some/model"):
        is_local("some/model", False, "model")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "a file")
    assert is_local("no/network", True, "model")


def test_offline_is_said_quickly(monkeypatch):
    """As with HF_HUB_OFFLINE=1, which huggingface_hub reads when it is imported."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    since = time.perf_counter()
    with pytest.raises(OSError, match="the hub does not answer"):
        is_local("some/model", True, "model")
    assert time.perf_counter() - since < 10


def test_a_folder_that_goes_is_noticed(place):
    check_folder("data")
    shutil.rmtree(place / "data")
    with pytest.raises(FileNotFoundError):
        check_folder("data")

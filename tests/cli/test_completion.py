# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast --print-completion`: a script that bash runs and that completes."""

import shutil
import subprocess
import sys

import pytest

from patchrec_fast.cli.completion import SHELLS
from patchrec_fast.cli.main import COMMANDS, main


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_in_it(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    shown = capsys.readouterr().out
    for name in (*COMMANDS, "--limit-train", "--exclude-seen"):
        assert name in shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["train", "--limit-t"], ["--limit-train"]), (["data", "dow"], ["download"]), (["eval"], ["evaluate"])],
)
def test_bash_completes(words, expected, capsys):
    pytest.importorskip("shtab")
    main(["--print-completion", "bash"])
    typed = " ".join(["patchrec-fast", *words])
    call = f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_patchrec_fast; echo "${{COMPREPLY[@]}}"'
    script = f"{capsys.readouterr().out}\n{call}"
    done = subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == expected, done.stderr


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", "bash"])
    assert stopped.value.code == 1
    assert "pip install shtab" in capsys.readouterr().err

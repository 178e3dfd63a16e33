# SPDX-License-Identifier: Apache-2.0
"""The code of README and docs: Python runs as printed, top to bottom, on a small model and dataset in place of those it
names; the README's commands run, with fewer steps and samples; commands that need a hub, a GPU or hours parse."""

import csv
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from patchrec_fast import __version__, data
from patchrec_fast.cli.main import COMMANDS, main, parser_of

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
NAME = "meta-llama/Llama-3.2-1B-Instruct"
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def movies():
    return data.generate(users=4, items=60)


@pytest.fixture
def place(movies, monkeypatch, tmp_path):
    """A working directory with data/ml-1m, and downloads that are a tiny model and the sample's tokenizer."""
    pytest.importorskip("pyarrow")
    transformers = pytest.importorskip("transformers")

    made = {each: each.from_pretrained for each in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM)}

    def tokenizer(name, **options):
        if name != NAME:  # a folder that the page has made
            return made[transformers.AutoTokenizer](name, **options)
        return data.sample_tokenizer(movies.titles.values())

    def model(name, **options):
        if name != NAME:
            return made[transformers.AutoModelForCausalLM](name, **options)
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**TINY, vocab_size=2100, tie_word_embeddings=True)
        )

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    data.save(movies, "data/ml-1m")


def run(page, names, code):
    """Runs a page's blocks in one module, so that its classes can be pickled."""
    for number, block in enumerate(code):
        exec(compile(block, f"{page}, block {number + 1}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(page, place, monkeypatch):
    if page.endswith("training.md"):
        for name in ("accelerate", "peft", "trl", "datasets"):
            pytest.importorskip(name)
    module = SimpleNamespace(__name__="page")
    monkeypatch.setitem(sys.modules, "page", module)
    run(page, vars(module), blocks(page, "python"))


def test_readme(place):
    loop, call, *rest = blocks("README.md", "python")
    embedding = torch.nn.Embedding(50, 8)
    sessions = [[torch.tensor([1, 2, 3]), torch.tensor([4])], [torch.tensor([5, 6])]]
    names = {
        "torch": torch,
        "model": SimpleNamespace(embed_tokens=embedding),
        "sessions": sessions,
        "ids": torch.tensor([1, 2, 3, 4, 5, 6]),
        "token_offsets": torch.tensor([0, 3, 4, 6]),
        "item_offsets": torch.tensor([0, 2, 3]),
    }
    run("README.md", names, [loop])
    before = names["embeddings"]
    run("README.md", names, [call])
    torch.testing.assert_close(names["embeddings"], before)
    run("README.md", names, rest)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())


def commands():
    for page in [*PAGES, "README.md", "CONTRIBUTING.md"]:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{page}: {line[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_exist_and_parse(words, monkeypatch):
    monkeypatch.setattr("patchrec_fast.cli.folders.check_folder", lambda *_, **__: None)  # a reader's, not ours
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
        return
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(rest)
        assert options.module
        program, rest = "python", ["-m", options.training_script, *options.training_script_args]
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        options = launch_command_parser().parse_args(rest[1:])
        assert options.module
        program, rest = "python", ["-m", options.training_script, *options.training_script_args]
    if program == "bash":
        assert (ROOT / rest[0]).is_file()
        return
    if program == "nsys":
        at = rest.index("python")
        program, rest = "python", rest[at + 1 :]
    if program == "python" and rest[:2] != ["-m", "patchrec_fast.cli"]:
        assert rest[0] == "-m"
        assert importlib.util.find_spec(rest[1])
        return
    if program == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        for wanted in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(wanted.split(",")) <= set(extras)
        return
    if program == "python":
        rest = rest[2:]
    else:
        assert program == "patchrec-fast"
    if rest[0].startswith("--"):
        assert rest in (["--print-completion", "bash"], ["--version"])
        return
    assert rest[0] in COMMANDS
    parser_of(rest[0]).parse_args(rest[1:])


def run_commands(lines, fewer):
    """Commands as printed, with flags for fewer steps."""
    for line in lines:
        _, command, *flags = shlex.split(line)
        assert main([command, *flags, *fewer.get(command, [])]) == 0, line


@pytest.fixture
def empty(monkeypatch, tmp_path):
    for name in ("pyarrow", "accelerate", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_commands_run(empty):
    [block] = [block for block in blocks("README.md", "bash") if "patchrec-fast train" in block]
    run_commands(block.splitlines(), {"train": ["--steps", "2", "--limit-val", "4"], "evaluate": ["--limit", "4"]})
    assert (empty / "report.html").stat().st_size > 10_000


def test_from_two_tables_to_answers(empty, capfd):
    """The page's commands one after another; PATCHREC_FAST_AS_PRINTED=1 leaves none of its steps out."""
    whole = os.environ.get("PATCHREC_FAST_AS_PRINTED")
    lines = [line for block in blocks("docs/your-data.md", "bash") for line in block.replace("\\\n", " ").splitlines()]
    run_commands(lines, {} if whole else {"train": ["--steps", "3", "--limit-val", "8"], "evaluate": ["--limit", "8"]})
    shop = data.load("data/shop")
    with open("answers.csv", encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    assert {answer["user"] for answer in answers} == set(shop.user_ids)
    assert {answer["item"] for answer in answers} <= set(shop.item_ids)
    assert len(answers) == 10 * len(shop)
    assert "Crème Fraîche" in shop.titles.values()
    report = Path("report.html").read_text(encoding="utf-8")
    assert "popularity" in report
    if whole:
        assert "Tomato Passata" in capfd.readouterr().out.partition("\n  1  ")[2][:40]  # to flour, yeast and oil


def test_pre_training_then_fine_tuning_runs(monkeypatch, tmp_path):
    """As the page has it: the second command takes what the first one leaves, and the third goes on."""
    for name in ("pyarrow", "accelerate"):
        pytest.importorskip(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    data.save(data.generate(users=8, items=60), "data/ml-1m")
    [block] = [block for block in blocks("docs/training.md", "bash") if "--stage pretrain" in block]
    lines = [shlex.split(line) for line in block.splitlines() if line.startswith("patchrec-fast train")]
    assert [line[-1] for line in lines] == ["runs/pretrain", "runs/pft-s", "--resume"]
    small = ["--steps=2", "--limit-val=4", "--batch=2"]
    for _, command, *flags in lines:
        tiny = ["--model=tiny", "--tokenizer=sample", "--hidden=16", "--layers=1", "--heads=2"]
        made = flags[1].startswith("path/to/")
        assert main([command, *(tiny + flags[2:] if made else flags), *small]) == 0
    assert Path("runs/pft-s/patchrec.json").is_file()


def test_every_page_is_in_the_contents():
    contents = re.search(r"```\{toctree\}(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)[1]
    assert {f"docs/{line}.md" for line in contents.split() if not line.startswith(":") and line != "2"} == {
        page for page in PAGES if page != "docs/index.md"
    }


def test_the_pages_build(tmp_path):
    for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "patchrec_fast.compress" in (tmp_path / "api.html").read_text()


def test_the_citation_has_the_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()

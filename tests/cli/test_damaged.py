# SPDX-License-Identifier: Apache-2.0
"""Each file that a command reads, damaged in many ways: one line that names it, or the damage did no harm.

PATCHREC_FAST_DAMAGES is how many of the random ones are made a file (default: 1).
"""

import json
import os
import random
import shutil

import pytest

from patchrec_fast.cli.main import main
from patchrec_fast.evaluation import Report

RANDOM = int(os.environ.get("PATCHREC_FAST_DAMAGES", "1"))
SHAPES = [
    b"",
    b"x",
    b"{}",
    b"[]",
    b"null",
    b"5",
    b'"text"',
    b"[" * 100_000,
    b'{"a": ' * 100_000,
    b"\xff\xfe\x00",
    b"\0" * 64,
]


def flipped(content, rng):
    changed = bytearray(content)
    for _ in range(8):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damages(content, rng):
    yield from rng.sample(SHAPES, min(len(SHAPES), 5 * RANDOM))
    for _ in range(RANDOM):
        yield content[: rng.randrange(len(content))]
        yield flipped(content, rng)
        yield rng.randbytes(300)
    try:
        fields = json.loads(content)
    except ValueError:
        return
    for key in rng.sample(sorted(fields), min(len(fields), 4 * RANDOM)):
        value = rng.choice([None, "x", -1, 10**30, 0.5, [], {}, [[]], True, "\ud800"])
        yield json.dumps({**fields, key: value}).encode()
        yield json.dumps({name: entry for name, entry in fields.items() if name != key}).encode()


@pytest.fixture(scope="module")
def model(folders, tmp_path_factory):
    """A copy to be damaged."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(folders.model, folder)
    return folder


NAMES = ["config.json", "generation_config.json", "model.safetensors", "patchrec.json", "tokenizer.json",
         "tokenizer_config.json", "chat_template.jinja"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder(name, model, folders, capsys):
    whole = (model / name).read_bytes()
    rng = random.Random(name)
    try:
        for content in damages(whole, rng):
            (model / name).write_bytes(content)
            status = main(["recommend", "--model", str(model), "--data", str(folders.data), "--items", "1", "--k", "2"])
            shown = capsys.readouterr().err
            assert status in (0, 1), content[:200]
            if status:
                said = shown.splitlines()[-1]
                assert said.startswith("patchrec-fast recommend: error: "), said
                assert str(model) in said, (said, content[:200])
                assert len(said) < 1000
                assert len([line for line in shown.splitlines() if "warning" not in line]) <= 2, shown
    finally:
        (model / name).write_bytes(whole)
    assert {path.name for path in model.iterdir()} == set(NAMES)


def test_the_folder_as_it_was(model, folders):
    assert main(["recommend", "--model", str(model), "--data", str(folders.data), "--items", "1"]) == 0


def profile(**changes):
    fields = {"setting": "s", "users": 1, "items": 5.0, "rows": 9.0, "pack_ms": 1.0, "prompt_ms": 1.0, "decode_ms": 1.0,
              "peak_mib": 1.0, "memory": "m"}  # fmt: skip
    return json.dumps({"compared": [{**fields, **changes}], "growth": [fields], "k": 2})


def evaluation(**changes):
    made = Report(name="r", ks=(1, 5), ranks=[1, -1, 3], users=[0, 0, 1], identity="i", shared_titles=0,
                  shared_targets=0, rows=9.0, seconds={"pack": 0.5}, peak_memory=5, memory_kind="m")  # fmt: skip
    return json.dumps({"report": {**made.to_dict(), **changes}, "baselines": []})


CURVES = "step,split,loss,tokens,seconds\n1,train,2.0,5,1.0\n2,val,1.5,9,2.0\n"
LINES = "cpu,torch,commit,shape,contestant,median_ms,ratio\nC,2,c,A,patchrec_fast,9.0,0.5\n"
REPORT_INPUTS = {
    "profile.json": ("--profile", profile()),
    "compress.csv": ("--bench", LINES),
    "run/result.json": ("--run", json.dumps({"stage": "text", "steps": 1, "samples": 1, "train_loss": 2.0,
                                             "first_val_loss": 2.0, "val_loss": None, "tokens": 5, "seconds": 1.0,
                                             "tokens_per_second": 5.0, "out": "run"})),
    "run/curves.csv": ("--run", CURVES),
    "report.json": ("--evaluation", evaluation()),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORT_INPUTS)
def test_an_input_of_the_report(name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flag, whole = REPORT_INPUTS[name]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves.csv").write_text(CURVES)
    file, out = tmp_path / name, tmp_path / "report.html"
    command = ["report", "--out", str(out), flag, str(file.parent if flag == "--run" else file)]
    file.write_text(whole)
    assert main(command) == 0
    extra = {
        "profile.json": [profile(items="x"), profile(setting=None), profile(rows=None), profile(decode_ms=True)],
        "compress.csv": [
            LINES + "C,2,c,A,patchrec_fast,9.0\n",
            LINES + "C,2,c,A,patchrec_fast,9.0,fast\n",
            LINES + "C,2,c,A,patchrec_fast,9.0,-1\n",
            LINES + "C,2,c,A,patchrec_fast,9.0,1,1\n",
            LINES + "C,2,c," + "A" * 200_000 + ",patchrec_fast,9.0,1\n",
            LINES.replace("median_ms", "median"),
        ],
        "run/curves.csv": [
            CURVES + "3,train,2.0,5\n",
            CURVES + "3,train,2.0,5,1.0,1\n",
            CURVES + "3,train,low,5,1.0\n",
            CURVES + "x,train,2.0,5,1.0\n",
            CURVES + "3,train,1e999,5,1.0\n",
            CURVES + "3,train,nan,5,1.0\n",
            CURVES + "3,test,2.0,5,1.0\n",
            CURVES + "3,train,2.0,,1.0\n",
            CURVES + "3,train,2.0,5," + "9" * 200_000 + "\n",
            CURVES.replace("loss", "los"),
        ],
        "report.json": [
            evaluation(ranks=[1, -1]),
            evaluation(ranks=[1, -1, 0.5]),
            evaluation(ranks="111"),
            evaluation(ks=[]),
            evaluation(ks=[0]),
            evaluation(ks=[10**30]),
            evaluation(ranks=[1, -1, 10**30]),
            evaluation(users=[0, 0, 10**30]),
            evaluation(users=[0, 0, -(10**30)]),
            evaluation(rows=10**400),
            evaluation(seconds={"pack": 10**400}),
            evaluation(peak_memory=10**400),
            evaluation(shared_titles=10**400),
            evaluation(users=[0, 0, "x"]),
            evaluation(name=None),
            evaluation(seconds={"pack": "x"}),
            evaluation(rows="x"),
            evaluation(peak_memory=-1.5),
            json.dumps({"report": 5}),
            json.dumps({"report": json.loads(evaluation())["report"], "baselines": [5]}),
        ],
    }
    content = [*damages(whole.encode(), random.Random(name)), *(text.encode() for text in extra.get(name, ()))]
    for number, damaged in enumerate(content):
        file.write_bytes(damaged)
        out.write_text("old")
        status = main(command)
        shown = capsys.readouterr().err
        if status:
            assert (status, out.read_text()) == (1, "old")
            assert str(file) in shown, (shown, damaged[:200])
            assert shown.count("\n") == 1
        else:
            assert number < len(content) - len(extra.get(name, ())), damaged[:200]

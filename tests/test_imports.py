# SPDX-License-Identifier: Apache-2.0
"""What importing costs, in fresh processes."""

import ast
import importlib
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code, cwd=ROOT, path=()):
    """The output of `python -c code` with `path` at the end of sys.path, as site-packages are."""
    late = f"import sys; sys.path += {[str(entry) for entry in path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", late + textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "triton", "transformers", "pyarrow", "tqdm")
    loaded = run(
        f"import patchrec_fast as pf; print(pf.__version__, *(name for name in {heavy!r} if name in sys.modules))"
    )
    assert len(loaded) == 1


@pytest.mark.parametrize("package", ["patchrec_fast", "patchrec_fast.models", "patchrec_fast.train"])
def test_what_a_checker_sees_is_what_there_is(package):
    """The names under TYPE_CHECKING and those that are imported when they are asked for are written twice."""
    module = importlib.import_module(package)
    block = next(node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {name.asname for node in block.body for name in node.names}
    assert seen == {*module._PLACES, *getattr(module, "_PARTS", ())}
    for name in seen:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'typo'"):
        module.typo  # noqa: B018


def test_a_name_that_is_asked_for_late():
    """Each in a fresh process: first from inside a graph, out of a pickle, by a star."""
    compiled = """
        import patchrec_fast as pf, torch
        pool = lambda weight: pf.compress(torch.tensor([0, 1]), torch.tensor([0, 2]), weight)
        print(torch.compile(pool, fullgraph=True, backend="eager")(torch.ones(3, 4)).sum().item())
        print(pf.compress is pf.ops.compress.compress, {"Packer", "hf"} <= set(dir(pf)))
        """
    assert run(compiled) == ["4.0", "True", "True"]
    pickled = run("import patchrec_fast as pf, pickle; print(pickle.dumps(pf.SessionPatches(3)).hex())")[0]
    assert "group=3" in run(f"import pickle; print(pickle.loads(bytes.fromhex({pickled!r})))")[0]
    star = run("from patchrec_fast import *; print(evaluate.__module__, attach.__name__)")
    assert star == ["patchrec_fast.evaluation.run", "attach"]


def test_importing_the_names_imports_torch_and_nothing_heavier():
    heavy = ("triton", "transformers", "tokenizers", "pyarrow", "matplotlib", "pandas", "tqdm", "jinja2")
    loaded = run(
        f"""
        sys.path.insert(0, "kernels")
        import torch
        for name in {heavy!r}:
            sys.modules.pop(name, None)  # what torch itself imports
        import patchrec_fast
        from patchrec_fast import data, evaluation, info
        from patchrec_fast import *
        print(*(name for name in {heavy!r} if name in sys.modules))
        """
    )
    assert loaded == []


def test_the_package_works_without_triton_transformers_and_pyarrow():
    out = run(
        """
        sys.path.insert(0, "kernels")
        for name in ("triton", "transformers", "tokenizers", "pyarrow"):
            sys.modules[name] = None  # importing it now fails
        import torch, patchrec_fast as pf
        weight = torch.ones(3, 4, requires_grad=True)
        pf.compress(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3]), weight).sum().backward()
        print(weight.grad.sum().item())
        """
    )
    assert out == ["8.0"]


STAND_IN = """
__version__ = "0.18.2"

class Anything:
    def __init__(self, *arguments, **options): pass
    def __call__(self, decorated): return decorated

def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return Anything
"""


@pytest.fixture
def hugging_face_kernels(tmp_path):
    """A stand-in for Hugging Face's `kernels`: the module, what transformers imports from it, and its metadata."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(STAND_IN)
    metadata = tmp_path / "kernels-0.18.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (metadata / "RECORD").write_text("kernels/__init__.py,,\n")
    (metadata / "top_level.txt").write_text("kernels\n")
    return tmp_path


def test_the_kernels_folder_does_not_shadow_hugging_faces(hugging_face_kernels):
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import kernels; from transformers import LlamaForCausalLM as L; print(kernels.__version__, L.__name__)"
    assert run(code, path=[hugging_face_kernels]) == ["0.18.2", "LlamaForCausalLM"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_source_folder_that_hides_the_installed_package_says_so_once(installed, tmp_path):
    """As in a checkout after `pip install .`: Python finds the folder first, and its kernels were never built."""
    shutil.copytree(ROOT / "patchrec_fast", tmp_path / "clone" / "patchrec_fast", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "site" / "patchrec_fast").mkdir(parents=True)
    if installed:
        (tmp_path / "site" / "patchrec_fast" / "_native.so").touch()
    code = f"""
        clone, site = {str(tmp_path / "clone")!r}, {str(tmp_path / "site")!r}
        sys.path = [clone, *(entry for entry in sys.path if entry not in ("", {str(ROOT)!r})), site]
        import warnings, torch, patchrec_fast as pf
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                pf.compress(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.ones(2, 4))
        print(len(said), *(str(one.message).replace(" ", "_") for one in said))
        """
    count, *messages = run(code, cwd=tmp_path)
    assert count == str(int(installed))
    if installed:
        assert f"hides_the_installed_package_in_{tmp_path / 'site' / 'patchrec_fast'}:" in messages[0]


def test_llama_runs_from_the_repository_root():
    out = run(
        """
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        tiny = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
        print(tuple(LlamaForCausalLM(LlamaConfig(**tiny))(torch.tensor([[1, 2]])).logits.shape))
        """
    )
    assert "".join(out) == "(1,2,16)"


def test_info_runs():
    out = subprocess.run(
        [sys.executable, "-m", "patchrec_fast.info"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert out.returncode == 0, out.stderr
    assert "compress on cpu: float32:" in out.stdout
    assert "not triton: " in out.stdout

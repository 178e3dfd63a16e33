# SPDX-License-Identifier: Apache-2.0
"""Prompt: the cut template against tokenising the whole conversation at once."""

import copy
import json
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer

from patchrec_fast.layout import Catalogue, Prompt

SYSTEM = "You are a helpful assistant in movie recommendations."
INSTRUCTION = "A user has watched [HISTORY_SEQUENCE]. Please recommend one movie."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TITLES = ["Jaws 2", "The End", "  spaced  ", "Amélie — 愛 🎬", "7", "Jaws 2"]


@pytest.fixture
def small(sample):
    """The sample's tokenizer, to be changed at will."""
    return copy.deepcopy(sample.tokenizer)


@pytest.fixture
def chatml(small):
    small.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    small.chat_template = CHATML
    return small


def whole(tokenizer, history, answer=None, system=SYSTEM, instruction=INSTRUCTION):
    """Token ids of the conversation rendered with the history written out, cut after the answer."""
    written = f"<|start_seq_id|>{history}<|end_seq_id|>"
    messages = [] if system is None else [{"role": "system", "content": system}]
    content = instruction.replace("[HISTORY_SEQUENCE]", written)
    messages.append({"role": "user", "content": content})
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    return tokenizer.encode(text + (answer or ""), add_special_tokens=False)


def joined(prompt, tokenizer):
    titles = Catalogue.from_titles(enumerate(TITLES), tokenizer)
    ids = [*prompt.prefix]
    for place in range(len(TITLES)):
        if place:
            ids.append(prompt.separator)
        ids += titles.token_ids[titles.offsets[place] : titles.offsets[place + 1]].tolist()
    return [*ids, *prompt.suffix]


@pytest.mark.parametrize("which", ["small", "chatml", "tokenizer"])
@pytest.mark.parametrize("system", [SYSTEM, None])
def test_parts_are_the_whole(which, system, request):
    tokenizer = request.getfixturevalue(which)
    prompt = Prompt(tokenizer, system=system, instruction=INSTRUCTION)
    expected = whole(tokenizer, "<|item_sep_id|>".join(TITLES), system=system)
    assert joined(prompt, tokenizer) == expected


@pytest.mark.parametrize("instruction", ["[HISTORY_SEQUENCE]", "a[HISTORY_SEQUENCE]b", " [HISTORY_SEQUENCE] "])
def test_history_at_the_edges(small, instruction):
    prompt = Prompt(small, instruction=instruction)
    text = "<|item_sep_id|>".join(TITLES)
    assert joined(prompt, small) == whole(small, text, system=None, instruction=instruction)


def test_real_titles(tokenizer, data_dir):
    from patchrec_fast import data

    dataset = data.load(data_dir / "ml-1m")
    titles = list(dataset.titles.values())
    prompt = Prompt(tokenizer, system=SYSTEM, instruction=INSTRUCTION)
    catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
    between = tokenizer.encode("<|item_sep_id|>".join(titles), add_special_tokens=False)
    cuts = [place for place, token in enumerate(between) if token == prompt.separator]
    assert [token for token in between if token != prompt.separator] == catalogue.token_ids.tolist()
    starts = [cut - place for place, cut in enumerate(cuts)]
    assert starts == catalogue.offsets[1:-1].tolist()


@pytest.mark.parametrize("which", ["small", "tokenizer"])
def test_marks(which, request):
    tokenizer = request.getfixturevalue(which)
    prompt = Prompt(tokenizer, system=SYSTEM, instruction=INSTRUCTION)
    names = tokenizer.convert_ids_to_tokens([prompt.prefix[-1], prompt.suffix[0], prompt.separator, prompt.end_of_turn])
    assert names == ["<|start_seq_id|>", "<|end_seq_id|>", "<|item_sep_id|>", "<|eot_id|>"]
    assert prompt.num_embeddings == len(tokenizer)
    assert prompt.separator < prompt.num_embeddings


def test_llama_gets_three_rows(tokenizer):
    assert Prompt(tokenizer, instruction=INSTRUCTION).num_embeddings == 128_256 + 3


def test_chatml_end_of_turn(chatml):
    prompt = Prompt(chatml, instruction=INSTRUCTION)
    assert chatml.convert_ids_to_tokens(prompt.end_of_turn) == "<|im_end|>"


def test_marks_are_added_once(small):
    before = len(small)
    first = Prompt(small, instruction=INSTRUCTION)
    size = len(small)
    again = Prompt(small, instruction=INSTRUCTION)
    assert size <= before + 3
    assert len(small) == size
    assert again.separator == first.separator


def test_the_date_is_fixed_and_given(small):
    dated = [Prompt(small, system="s", instruction=INSTRUCTION, date=d) for d in ("1 Jan", "2 Feb")]
    texts = [small.decode(prompt.prefix) for prompt in dated]
    assert "Date: 1 Jan" in texts[0]
    assert "Date: 2 Feb" in texts[1]


def test_a_template_with_todays_date_is_refused(small):
    small.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    with pytest.raises(ValueError, match="tokenizer: its chat template prints today's date"):
        Prompt(small, instruction=INSTRUCTION)


def test_pickles_without_the_tokenizer(small):
    prompt = Prompt(small, system=SYSTEM, instruction=INSTRUCTION)
    frozen = pickle.dumps(prompt)
    assert len(frozen) < 2000
    twin = pickle.loads(frozen)
    assert twin.prefix.tolist() == prompt.prefix.tolist()
    assert twin.suffix.tolist() == prompt.suffix.tolist()
    assert (twin.separator, twin.end_of_turn) == (prompt.separator, prompt.end_of_turn)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"instruction": "nothing"}, ValueError, r"exactly once, got it 0 times in 'nothing'"),
        ({"instruction": "[HISTORY_SEQUENCE]" * 2}, ValueError, "exactly once, got it 2 times"),
        ({"instruction": 3}, TypeError, "instruction: expected a string, got 3"),
        ({"instruction": INSTRUCTION, "system": 0}, TypeError, "system: expected a string, got 0"),
        ({"instruction": INSTRUCTION, "date": None}, TypeError, "date: expected a string"),
        (
            {"instruction": INSTRUCTION, "system": "<|start_seq_id|><|end_seq_id|>"},
            ValueError,
            "shows the history 2 times",
        ),
    ],
)
def test_bad_text(small, given, error, message):
    with pytest.raises(error, match=message):
        Prompt(small, **given)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "tokenizer: it has no chat template"),
        ("{{ messages[0].role }}<|eot_id|>", "shows the history 0 times"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ends an answer with ''"),
        ("{% for m in messages %}{{ m.content }} bye {% endfor %}", "ends an answer with ' bye '"),
        ("{{ raise_exception('no system role') }}", r"fails on \['user'\]: no system role"),
        ("{{ 1 / 0 }}", "fails on"),
    ],
)
def test_bad_templates_leave_the_tokenizer_alone(template, message):
    from patchrec_fast import data

    tokenizer = data.sample_tokenizer(["a few words"])
    tokenizer.chat_template = template
    before = len(tokenizer)
    with pytest.raises(ValueError, match=message):
        Prompt(tokenizer, instruction=INSTRUCTION)
    assert len(tokenizer) == before


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("taken", [False, True])
def test_ids_with_holes(small, seed, taken):
    """tokenizers gives a new token the number of tokens as its id: an error where another has it, and only there."""
    rng = np.random.default_rng(seed)
    state = json.loads(small.backend_tokenizer.to_str())
    marks = {"<|start_seq_id|>", "<|end_seq_id|>", "<|item_sep_id|>"}
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] not in marks]
    whole = sorted(small.get_vocab().items(), key=lambda each: each[1])
    tokens = [token for token, _ in whole if token not in marks]  # added ones too: others get ids at loading
    added = {each["content"] for each in state["added_tokens"]}
    tokens.sort(key=lambda token: token not in added)  # low: new ids follow the largest of theirs
    vocabulary = {token: place for place, token in enumerate(tokens)}
    count = len(vocabulary)
    own = np.arange(count, count + 3)
    free = np.setdiff1d(np.arange(count + 3 + int(rng.integers(1, 2 * count))), own)
    places = np.append(np.sort(rng.choice(free[:-1], size=count - 1, replace=False)), free[-1])
    if taken:
        places[count // 2] = rng.choice(own)
    state["model"]["vocab"] = {token: int(places[place]) for token, place in vocabulary.items()}
    for each in state["added_tokens"]:
        each["id"] = state["model"]["vocab"][each["content"]]
    small._tokenizer = Tokenizer.from_str(json.dumps(state))
    before = small.get_vocab()
    assert len(before) == count
    if taken:
        with pytest.raises(ValueError, match="its ids have holes"):
            Prompt(small, instruction=INSTRUCTION)
        return
    prompt = Prompt(small, instruction=INSTRUCTION)
    ids = [int(prompt.prefix[-1]), int(prompt.suffix[0]), prompt.separator]
    assert len(set(ids)) == 3
    assert not set(ids) & set(before.values())
    assert prompt.num_embeddings == max(*ids, *before.values()) + 1

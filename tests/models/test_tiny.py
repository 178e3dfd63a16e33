# SPDX-License-Identifier: Apache-2.0
"""The cut tokenizer against the whole one, and the tiny model as plain Hugging Face files."""

import json
from copy import deepcopy

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.models.tiny import tiny_model
from patchrec_fast.models.vocabulary import cut

TEXTS = {"system": "You recommend.", "instruction": "Watched: [HISTORY_SEQUENCE]. Next?"}
SIZES = {"hidden": 32, "layers": 2, "heads": 4}
OTHER = "Ça va? 日本語 🎬 nothing of this\n\n  was in any title's text 1234 <|eot_id|>"


def strings(tokenizer, texts):
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [tokenizer.convert_ids_to_tokens(row) for row in ids]


@pytest.fixture(scope="module")
def sample():
    dataset = data.generate(users=3, items=200)
    return dataset.titles, data.sample_tokenizer(data.generate(users=1, items=1000).titles.values())


def check(titles, whole, smaller):
    """The same strings for titles and the prompt; other text is still encoded, and comes back."""
    texts = list(titles.values())
    assert strings(smaller, texts) == strings(whole, texts)
    prompts = [pf.Prompt(tokenizer, **TEXTS) for tokenizer in (whole, smaller)]
    for part in ("prefix", "suffix"):
        before, after = (
            tokenizer.convert_ids_to_tokens(getattr(prompt, part))
            for tokenizer, prompt in zip((whole, smaller), prompts, strict=True)
        )
        assert before == after
    ids = smaller(OTHER, add_special_tokens=False)["input_ids"]
    assert smaller.decode(ids) == OTHER
    assert len(ids) >= len(whole(OTHER, add_special_tokens=False)["input_ids"])
    assert smaller.get_chat_template() == whole.get_chat_template()
    assert sorted(smaller.get_vocab().values()) == list(range(len(smaller)))


@pytest.mark.parametrize("name", ["ml-1m", "ml-100k", "goodreads"])
def test_every_real_title_is_cut_at_the_same_places(name, data_dir, tokenizer):
    titles = data.load(data_dir / name).titles
    model, smaller = tiny_model(titles, tokenizer, **TEXTS, **SIZES)
    check(titles, tokenizer, smaller)
    assert len(smaller) < 9000 < len(tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(smaller)


def test_the_samples_tokenizer_can_be_cut(sample):
    titles, whole = sample
    names = dict(whole.get_vocab())
    _, smaller = tiny_model(titles, whole, **TEXTS, **SIZES)
    assert whole.get_vocab() == names  # left as it was
    assert len(smaller) < len(whole)
    check(titles, whole, smaller)
    order = sorted(smaller.get_vocab(), key=smaller.get_vocab().get)
    assert [whole.convert_tokens_to_ids(name) for name in order] == sorted(map(whole.convert_tokens_to_ids, order))


def test_only_what_is_needed_is_kept(sample):
    _, whole = sample
    ids = whole("the", add_special_tokens=False)["input_ids"]
    smaller = cut(whole, ids)
    alphabet_and_special = 256 + len(set(whole.all_special_ids))
    assert alphabet_and_special <= len(smaller) <= alphabet_and_special + 2  # at most "th" and "the"
    assert cut(whole, []).tokenize("the") == ["t", "h", "e"]


def test_the_template_points_to_the_new_ids(sample):
    """Of a special token whose id the cut changes, as in Llama 3."""
    whole = deepcopy(sample[1])
    whole.add_tokens(["<|begin|>"], special_tokens=True)
    begin = whole.convert_tokens_to_ids("<|begin|>")
    whole.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    smaller = cut(whole, [begin, *whole("the", add_special_tokens=False)["input_ids"]])
    ids = smaller("the")["input_ids"]
    assert smaller.convert_ids_to_tokens(ids) == whole.convert_ids_to_tokens(whole("the")["input_ids"])
    assert ids[0] == smaller.convert_tokens_to_ids("<|begin|>") != begin


def test_ignored_merges(sample):
    """A word that is a token as a whole, though merges alone do not reach it, as in Llama 3."""
    _, whole = sample
    content = json.loads(whole.backend_tokenizer.to_str())
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["zzqz"] = len(content["model"]["vocab"])
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] in whole.all_special_tokens
    ]
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **whole.special_tokens_map)
    assert odd.tokenize("zzqz") == ["zzqz"]
    smaller = cut(odd, odd("zzqz the", add_special_tokens=False)["input_ids"])
    assert smaller.tokenize("zzqz the") == odd.tokenize("zzqz the")
    assert smaller.tokenize("zzqzz") == ["z", "z", "q", "z", "z"]


def test_plain_hugging_face_files(sample, tmp_path):
    titles, whole = sample
    model, smaller = tiny_model(titles, whole, **TEXTS, **SIZES)
    model.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_vocab() == smaller.get_vocab()
    check(titles, whole, tokenizer)
    assert tokenizer.eos_token == whole.eos_token
    ids = torch.tensor([tokenizer("A Title")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_the_seed_decides_the_weights(sample):
    titles, whole = sample
    torch.manual_seed(5)
    one, other, third = (tiny_model(titles, whole, **TEXTS, **SIZES, seed=seed)[0] for seed in (1, 1, 2))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert not torch.equal(one.model.embed_tokens.weight, third.model.embed_tokens.weight)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert int(torch.randint(2**30, ())) == int(torch.randint(2**30, (), generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 30}, "hidden: expected a multiple of 2 \\* heads = 8, got 30"),
        ({"layers": 0}, "layers: expected at least 1"),
        ({"instruction": "nothing"}, "instruction: expected \\[HISTORY_SEQUENCE\\] exactly once"),
    ],
)
def test_errors(sample, changes, message):
    titles, whole = sample
    with pytest.raises(ValueError, match=message):
        tiny_model(titles, whole, **{**TEXTS, **SIZES, **changes})


def test_other_tokenizers_cannot_be_cut():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(ValueError, match=r"only byte-level BPE .* got WordLevel"):
        cut(words, [0])

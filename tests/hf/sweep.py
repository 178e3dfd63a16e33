# SPDX-License-Identifier: Apache-2.0
"""Every causal-LM class of transformers, tiny and random: right, or refused with a message.

`python -m tests.hf.sweep` prints a line a class and fails if one is wrong or crashes; `--write` renews the table of
docs/models.md, `--only NAME ...` takes a few. A class runs in a process of its own, forked, so that none takes the
others with it. Right means: loss, gradients and `Recommender.scores` are those of each user alone, in plain calls.
"""

import argparse
import inspect
import os
import re
import signal
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn import functional as F

import patchrec_fast as pf
from patchrec_fast import data

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN = "<!-- python -m tests.hf.sweep --write -->"
TITLES = {1: "Jaws", 2: "Jaws 2", 3: "Alien", 4: "Heat"}
HISTORIES, TARGETS = [[1, 3, 4], [3]], [2, 4]
SECONDS = 120
WIDTH = 32

_SIZES = {
    r"hidden_size|d_model|n_embd|dim|model_dim|embedding_size|word_embed_proj_dim|emb_dim|d_embed|hidden_dim": WIDTH,
    r"num_hidden_layers|num_layers|n_layers?|decoder_layers|encoder_layers|n_layer": 2,
    r"num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads|attention_heads": 4,
    r"num_key_value_heads|n_kv_heads|num_kv_heads|multi_query_group_num|swa_num_key_value_heads": 2,
    r"head_dim|kv_channels|v_head_dim|global_head_dim|swa_head_dim|swa_v_head_dim|attention_head_dim": 8,
    r"qk_nope_head_dim|qk_rope_head_dim": 8,
    r"qk_head_dim": 16,
    r"q_lora_rank|kv_lora_rank": 16,
    r".*intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|decoder_ffn_dim|encoder_ffn_dim|inner_dim|d_inner": 48,
    r"num_local_experts|num_experts|n_routed_experts|moe_num_experts": 4,
    r"num_experts_per_tok|moe_topk|moe_k|num_selected_experts|top_k_experts": 2,
    r"n_group|topk_group|num_expert_group": 1,
    r"n_positions|max_position_embeddings|max_seq_len|max_target_positions|n_ctx|seq_length|max_length": 512,
    r"sliding_window|attention_window|window_size": 7,
    r"num_kv_shared_layers": 0,
    r"rotary_dim": 8,
    r"image_size|patch_size|num_channels": None,
}
_SPECIAL = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "is_decoder": True}

_LATENT = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16, "head_dim": 8, "v_head_dim": 8}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_CONV = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]}
_PADDED = {"pad_token_id": 1}
_MORE: dict[str, dict] = {
    "AXK1ForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "AXK2ForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "BailingHybridForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "BambaForCausalLM": _MAMBA,
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    },
    "DeepseekV2ForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "DeepseekV3ForCausalLM": {**_LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "DeepseekV32ForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "Dots1ForCausalLM": {"moe_intermediate_size": 16, "n_shared_experts": 1, "n_routed_experts": 4},
    "Dots3NoteForCausalLM": {"num_key_value_heads": 4},
    "Emu3ForCausalLM": _PADDED,
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "Glm4MoeLiteForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "GlmMoeDsaForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "GraniteMoeHybridForCausalLM": {
        **_MAMBA,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_intermediate_size": 48,
    },
    "JambaForCausalLM": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "KimiLinearForCausalLM": {"num_experts": 4, "num_experts_per_token": 2, "num_key_value_heads": 4, **_LATENT},
    "Lfm2ForCausalLM": _CONV,
    "Lfm2MoeForCausalLM": {**_CONV, "num_dense_layers": 1},
    "Llama4ForCausalLM": {
        "num_hidden_layers": 2,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        **_PADDED,
    },
    "LongcatFlashForCausalLM": {
        **_LATENT,
        "num_key_value_heads": 4,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 16,
    },
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
    "MiniCPM3ForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "ModernBertDecoderForCausalLM": _PADDED,
    "ProphetNetForCausalLM": _PADDED,
    "ReformerModelWithLMHead": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32], "is_decoder": True},
    "RobertaForCausalLM": _PADDED,
    "RobertaPreLayerNormForCausalLM": _PADDED,
    "XLMRobertaForCausalLM": _PADDED,
    "XLMRobertaXLForCausalLM": _PADDED,
    "XmodForCausalLM": {**_PADDED, "default_language": "en_XX", "languages": ["en_XX"]},
    "YoutuForCausalLM": {**_LATENT, "num_key_value_heads": 4},
    "ZambaForCausalLM": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "layer_types": None,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1, "router_hidden_size": 8},
}


def names() -> list[str]:
    """Each class that `AutoModelForCausalLM` gives."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def tiny(config_class: type, vocabulary: int, padding: int | None) -> dict:
    """Arguments of a small configuration: known sizes by name, one layer of each kind."""
    default = config_class()
    fields = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    made: dict = {}
    for name, value in fields.items():
        if name in getattr(default, "sub_configs", {}):
            made[name] = tiny(type(value), vocabulary, padding) if value is not None else None
            continue
        if name in _SPECIAL:
            made[name] = padding if name == "pad_token_id" else _SPECIAL[name]
        elif name in ("vocab_size", "vocab_size_per_layer_input"):
            made[name] = vocabulary + 8
        elif re.fullmatch(r"(image|video|audio|boi|eoi|boa|eoa|vision).*(token_id|token_index)", name):
            made[name] = vocabulary + 1 + len(made) % 7
        elif type(value) in (int, type(None)) or name.endswith("sliding_window"):
            for pattern, size in _SIZES.items():
                if size is not None and re.fullmatch(pattern, name) and (value is not None or "window" not in name):
                    made[name] = size
        elif (type(value) is float and "dropout" in name) or name.endswith("pdrop"):
            made[name] = 0.0
        elif isinstance(value, dict) and "short_factor" in str(value):
            made[name] = {"rope_type": "default", "rope_theta": 10000.0}
    if "qk_rope_head_dim" in made and "head_dim" in made:
        made["head_dim"] = made["qk_rope_head_dim"]
    depth = getattr(default, "num_hidden_layers", None)
    types = getattr(default, "layer_types", None)
    if types:
        places = sorted({types.index(kind) for kind in types})
        places = places if len(places) > 1 else [0, 1]
        for name, value in fields.items():
            if isinstance(value, list) and len(value) == depth:
                made[name] = [value[place] for place in places]
        for name in fields:
            if re.fullmatch(r"num_hidden_layers|num_layers|n_layers?", name):
                made[name] = len(places)
    return made


def randomise(model):
    """Weights far from zero everywhere, so that no part is without effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
            elif parameter.numel() and float(parameter.abs().sum()) == 0:
                parameter.fill_(0.3)
    return model.eval()


def packer():
    tokenizer = data.sample_tokenizer(TITLES.values())
    prompt = pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]. Next?")
    return pf.Packer(pf.Catalogue.from_titles(TITLES, tokenizer), prompt, pf.Text())


def plain(model, batch, packer):
    """Loss, gradients and the titles' log-probabilities (B, I) of each user alone, in plain calls of the model."""
    losses, scores = [], []
    starts = [packer.pack([history]).ids.long() for history in HISTORIES]
    for a, b in pairwise(batch.cu_seqlens.tolist()):
        logits = model(input_ids=batch.ids[None, a:b].long(), use_cache=False).logits[0]
        losses.append(F.cross_entropy(logits[:-1].float(), batch.labels[a + 1 : b], reduction="none"))
    loss = torch.cat(losses).sum() / (batch.labels != -100).sum()
    loss.backward()
    with torch.no_grad():
        for start in starts:
            for title in range(len(TITLES)):
                first, last = packer.catalogue.offsets[title : title + 2]
                ids = packer.catalogue.token_ids[first:last].tolist()
                answer = torch.tensor([*ids, packer.prompt.end_of_turn])
                whole = torch.cat([start, answer])
                logits = model(input_ids=whole[None], use_cache=False).logits[0].float().log_softmax(-1)
                scores.append(logits[len(start) - 1 : -1].gather(1, answer[:, None]).sum())
    return loss.detach(), _gradients(model), torch.stack(scores).view(len(starts), -1)


def _gradients(model):
    made = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    model.zero_grad(set_to_none=True)
    return made


def _off(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0))


def judge(model, tolerance=1e-3):
    """(verdict, what it says): "right", "training", "refused", "wrong" or "crash"."""
    made = packer()
    batch = made.pack(HISTORIES, TARGETS)
    try:
        loss, gradients, scores = plain(model, batch, made)
    except Exception as error:
        loss, gradients, scores = None, {}, None
        alone = f"{type(error).__name__}: {error}"
    try:
        handle = pf.attach(model)
    except (ValueError, TypeError, RuntimeError) as error:
        if loss is None:
            return "not built", f"a plain call of the tiny model fails: {alone}"
        return "refused", str(error)
    if loss is None:
        return "crash", f"accepted, though a plain call fails: {alone}"
    try:
        out = model(**batch.model_inputs())
        out.loss.backward()
        found = _gradients(model)
        largest = max(float(each.abs().max()) for each in gradients.values())
        worst = max(
            float((found.get(name, torch.zeros(())) - each).abs().max()) / largest for name, each in gradients.items()
        )
        if _off(out.loss.detach(), loss) > tolerance or worst > 10 * tolerance:
            return "wrong", f"loss {float(out.loss):.5g}, expected {float(loss):.5g}; gradients off by {worst:.2g}"
        handle.detach()
        try:
            rec = pf.Recommender(model, made)
        except (ValueError, TypeError) as error:
            return "training", str(error)
        off = _off(torch.from_numpy(rec.scores(HISTORIES)), scores)
        return ("right", "") if off <= tolerance else ("wrong", f"scores off by {off:.2g}")
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"


def build(name: str, **options):
    """The class, tiny, with random weights."""
    import transformers

    kind, vocabulary = getattr(transformers, name), packer().prompt.num_embeddings
    torch.manual_seed(0)
    for padding in (None, vocabulary + 1):
        try:
            config_class = _configuration(kind)
            made = {**tiny(config_class, vocabulary, padding), **_MORE.get(name, {}), **options}
            model = randomise(kind(config_class(**made)))
            model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
            return model
        except Exception:
            if padding is not None:
                raise
    raise AssertionError


def _configuration(kind: type) -> type:
    """What the class's own constructor is annotated with, where that is a configuration: the text's, for one."""
    import transformers

    annotated = inspect.signature(kind.__init__).parameters.get("config")
    found = getattr(annotated, "annotation", None)
    if isinstance(found, str):
        found = getattr(transformers, found, None) or getattr(sys.modules[kind.__module__], found, None)
    return found if isinstance(found, type) and hasattr(found, "model_type") and found.model_type else kind.config_class


def _line(name: str) -> str:
    try:
        model = build(name)
    except Exception as error:
        return f"not built|{type(error).__name__}: {error}"
    return "|".join(judge(model))


def apart(name: str) -> tuple[str, str]:
    """The same in a forked process, which may crash or hang."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write, " ".join(_line(name).split())[:2000].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    verdict, _, says = text.partition("|")
    return (verdict, says) if text else ("crash", f"process ended with status {status}")


WORDS = {
    "right": "training and `Recommender`",
    "training": "training; `Recommender` refuses",
    "refused": "refused",
    "not built": "not tried",
}


def table(lines: dict[str, tuple[str, str]]) -> str:
    import transformers

    rows = [f"| {name} | {WORDS.get(verdict, verdict)} | {_short(says)} |" for name, (verdict, says) in lines.items()]
    head = [f"transformers {transformers.__version__}, {len(lines)} classes.", "", "| class | | |", "|---|---|---|"]
    return "\n".join([BEGIN, "", *head, *rows, ""])


def _short(says: str) -> str:
    says = re.sub(r"^model: \w+ (does not read packed prompts as each alone: )?", "", says)
    says = says if len(says) <= 160 else says[:157] + "..."
    return re.sub(r"([\\|<>{}`*_\[\]])", r"\\\1", says)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import transformers

    transformers.logging.set_verbosity_error()
    lines = {}
    for name in options.only or names():
        lines[name] = apart(name)
        print(f"{name:45} {lines[name][0]:10} {lines[name][1][:200]}", flush=True)
    if options.write:
        PAGE.write_text(PAGE.read_text(encoding="utf-8").partition(BEGIN)[0] + table(lines), encoding="utf-8")
    return int(any(verdict in ("wrong", "crash") for verdict, _ in lines.values()))


if __name__ == "__main__":
    sys.exit(main())

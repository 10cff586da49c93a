"""Checkpoints of zeros in the shapes of Llama and of PairRM: sparse files, which take no disk."""
import json
import os
import shutil

BYTES = {"BF16": 2, "F32": 4}


def llama_tensors(config):
    """Names and dimensions of a Llama's tensors."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    yield "model.embed_tokens.weight", [vocab, hidden]
    yield "model.norm.weight", [hidden]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [vocab, hidden]
    for layer in range(config["num_hidden_layers"]):
        of_layer = f"model.layers.{layer}."
        yield of_layer + "self_attn.q_proj.weight", [hidden, hidden]
        yield of_layer + "self_attn.k_proj.weight", [keys, hidden]
        yield of_layer + "self_attn.v_proj.weight", [keys, hidden]
        yield of_layer + "self_attn.o_proj.weight", [hidden, hidden]
        yield of_layer + "mlp.gate_proj.weight", [ffn, hidden]
        yield of_layer + "mlp.up_proj.weight", [ffn, hidden]
        yield of_layer + "mlp.down_proj.weight", [hidden, ffn]
        yield of_layer + "input_layernorm.weight", [hidden]
        yield of_layer + "post_attention_layernorm.weight", [hidden]


def pairrm_tensors(config):
    """The same of PairRM's DeBERTa and head."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]

    def linear(name, rows, columns):
        yield name + ".weight", [rows, columns]
        yield name + ".bias", [rows]

    def norm(name):
        yield name + ".LayerNorm.weight", [hidden]
        yield name + ".LayerNorm.bias", [hidden]

    yield from linear("head_layer.1", hidden, 2 * hidden)
    yield from linear("head_layer.4", 1, hidden)
    yield "pretrained_model.embeddings.word_embeddings.weight", [config["vocab_size"], hidden]
    yield from norm("pretrained_model.embeddings")
    yield from norm("pretrained_model.encoder")
    yield "pretrained_model.encoder.rel_embeddings.weight", [2 * config["position_buckets"], hidden]
    for layer in range(config["num_hidden_layers"]):
        of_layer = f"pretrained_model.encoder.layer.{layer}."
        for name in ("query_proj", "key_proj", "value_proj"):
            yield from linear(of_layer + "attention.self." + name, hidden, hidden)
        yield from linear(of_layer + "attention.output.dense", hidden, hidden)
        yield from norm(of_layer + "attention.output")
        yield from linear(of_layer + "intermediate.dense", ffn, hidden)
        yield from linear(of_layer + "output.dense", hidden, ffn)
        yield from norm(of_layer + "output")


def write(folder, tensors, dtype, config):
    """Weights of zeros, and the configuration."""
    os.makedirs(folder, exist_ok=True)
    at, header = 0, {}
    for name, dims in tensors:
        size = BYTES[dtype]
        for dim in dims:
            size *= dim
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)


def llama(folder, shape, dtype="BF16"):
    """A Llama of the shape: sizes by their names in config.json, embeddings apart unless it ties them."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
              "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False,
              "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
              "torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype]} | shape
    write(folder, llama_tensors(config), dtype, config)


def pairrm(folder, config, tokenizer):
    """A PairRM in f32, with the tokenizer of another folder."""
    write(folder, pairrm_tensors(config), "F32", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(tokenizer, name), folder)

"""Checkpoints of zeros in the shape of Llama and of PairRM: sparse files, which take no disk."""
import json
import os

LLAMA_8B = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                intermediate_size=14336, vocab_size=128256)
BYTES = {"BF16": 2, "F32": 4}


def llama(shape):
    """Names and dimensions of a Llama's tensors."""
    hidden, ffn, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = shape["num_key_value_heads"] * hidden // shape["num_attention_heads"]
    yield "model.embed_tokens.weight", [vocab, hidden]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocab, hidden]
    for layer in range(shape["num_hidden_layers"]):
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


def pairrm(config):
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


def write(folder, tensors, dtype):
    """Writes the tensors, all zero."""
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


def zeros(folder, shape, dtype="BF16"):
    """Writes a Llama of the shape."""
    write(folder, llama(shape), dtype)
    config = shape | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
                      "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False,
                      "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
                      "torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype]}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)

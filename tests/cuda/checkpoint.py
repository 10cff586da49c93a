"""Llama checkpoints of zeros in the shapes of large models: sparse files, which take no disk."""
import json
import os

# hidden size, layers, heads, heads of keys, width of the feed-forward, vocabulary
SHAPES = {"8b": (4096, 32, 32, 8, 14336, 128256), "1b": (2048, 16, 32, 8, 8192, 128256),
          "8bx2": (4096, 2, 32, 8, 14336, 128256), "8bx4": (4096, 4, 32, 8, 14336, 128256)}


def tensors(hidden, layers, heads, kv, ffn, vocab):
    keys = kv * hidden // heads
    yield "model.embed_tokens.weight", [vocab, hidden]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocab, hidden]
    for layer in range(layers):
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


def zeros(folder, shape):
    """Writes one in bf16."""
    hidden, layers, heads, kv, ffn, vocab = SHAPES[shape]
    os.makedirs(folder, exist_ok=True)
    at, header = 0, {}
    for name, dims in tensors(*SHAPES[shape]):
        size = 2
        for dim in dims:
            size *= dim
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
              "intermediate_size": ffn, "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
              "max_position_embeddings": 8192, "tie_word_embeddings": False, "hidden_act": "silu",
              "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)

"""Llama checkpoints of zeros in the shape of Llama-3-8B: sparse files, which take no disk."""
import json
import os

HIDDEN, HEADS, KV, FFN, VOCAB = 4096, 32, 8, 14336, 128256


def tensors(layers):
    keys = KV * HIDDEN // HEADS
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]
    for layer in range(layers):
        of_layer = f"model.layers.{layer}."
        yield of_layer + "self_attn.q_proj.weight", [HIDDEN, HIDDEN]
        yield of_layer + "self_attn.k_proj.weight", [keys, HIDDEN]
        yield of_layer + "self_attn.v_proj.weight", [keys, HIDDEN]
        yield of_layer + "self_attn.o_proj.weight", [HIDDEN, HIDDEN]
        yield of_layer + "mlp.gate_proj.weight", [FFN, HIDDEN]
        yield of_layer + "mlp.up_proj.weight", [FFN, HIDDEN]
        yield of_layer + "mlp.down_proj.weight", [HIDDEN, FFN]
        yield of_layer + "input_layernorm.weight", [HIDDEN]
        yield of_layer + "post_attention_layernorm.weight", [HIDDEN]


def zeros(folder, layers):
    """Writes one in bf16 with so many layers."""
    os.makedirs(folder, exist_ok=True)
    at, header = 0, {}
    for name, dims in tensors(layers):
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
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
              "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV,
              "intermediate_size": FFN, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
              "max_position_embeddings": 8192, "tie_word_embeddings": False, "hidden_act": "silu",
              "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)

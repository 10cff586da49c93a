"""Checkpoints of zeros in the shapes of real models: sparse files, which take no disk."""
import json
import os
import shutil

# Width, heads, heads of keys and values, width of the feed-forward step, tied embeddings; layers of the real model.
LLAMA = {"8b": (4096, 32, 8, 14336, False, 32), "1b": (2048, 32, 8, 8192, True, 16)}
VOCAB = 128256

# Of DeBERTa-v3-large: width, inner width, layers, buckets of relative positions.
WIDTH, INNER, PAIRRM_LAYERS, BUCKETS = 1024, 4096, 24, 256


def llama_tensors(shape, layers):
    width, heads, kv, inner, tied, _ = shape
    keys = kv * width // heads
    yield "model.embed_tokens.weight", [VOCAB, width]
    yield "model.norm.weight", [width]
    if not tied:
        yield "lm_head.weight", [VOCAB, width]
    for layer in range(layers):
        of_layer = f"model.layers.{layer}."
        yield of_layer + "self_attn.q_proj.weight", [width, width]
        yield of_layer + "self_attn.k_proj.weight", [keys, width]
        yield of_layer + "self_attn.v_proj.weight", [keys, width]
        yield of_layer + "self_attn.o_proj.weight", [width, width]
        yield of_layer + "mlp.gate_proj.weight", [inner, width]
        yield of_layer + "mlp.up_proj.weight", [inner, width]
        yield of_layer + "mlp.down_proj.weight", [width, inner]
        yield of_layer + "input_layernorm.weight", [width]
        yield of_layer + "post_attention_layernorm.weight", [width]


def pairrm_tensors(vocab, layers):
    encoder = "pretrained_model.encoder"
    norms = ["pretrained_model.embeddings.LayerNorm", f"{encoder}.LayerNorm"]
    matrices = {"head_layer.1": [WIDTH, 2 * WIDTH], "head_layer.4": [1, WIDTH]}
    for layer in range(layers):
        of_layer = f"{encoder}.layer.{layer}."
        norms += [of_layer + "attention.output.LayerNorm", of_layer + "output.LayerNorm"]
        for name in ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj", "attention.output.dense"):
            matrices[of_layer + name] = [WIDTH, WIDTH]
        matrices[of_layer + "intermediate.dense"] = [INNER, WIDTH]
        matrices[of_layer + "output.dense"] = [WIDTH, INNER]
    yield "pretrained_model.embeddings.word_embeddings.weight", [vocab, WIDTH]
    yield f"{encoder}.rel_embeddings.weight", [2 * BUCKETS, WIDTH]
    for name, shape in matrices.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    for name in norms:
        yield f"{name}.weight", [WIDTH]
        yield f"{name}.bias", [WIDTH]


def write(folder, tensors, dtype, config):
    """Weights of zeros, and the configuration."""
    os.makedirs(folder, exist_ok=True)
    at, header = 0, {}
    for name, dims in tensors:
        size = {"BF16": 2, "F32": 4}[dtype]
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


def zeros(folder, layers, name="8b"):
    """A Llama in bf16 with so many layers."""
    width, heads, kv, inner, tied, _ = LLAMA[name]
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
              "intermediate_size": inner, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
              "max_position_embeddings": 8192, "tie_word_embeddings": tied, "hidden_act": "silu",
              "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
    write(folder, llama_tensors(LLAMA[name], layers), "BF16", config)


def pairrm(folder, golden, layers=PAIRRM_LAYERS):
    """A PairRM in f32 of the real one's shape, with the tokenizer of the small one in the folder `golden`."""
    os.makedirs(folder, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(golden, name), folder)
    with open(os.path.join(golden, "config.json")) as file:
        config = json.load(file)
    config |= {"vocab_size": 128100, "hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 16,
               "intermediate_size": INNER, "max_position_embeddings": 512, "position_buckets": BUCKETS,
               "source_maxlength": 1224, "candidate_maxlength": 412}
    write(folder, pairrm_tensors(config["vocab_size"], layers), "F32", config)

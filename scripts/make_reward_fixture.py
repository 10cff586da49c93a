"""Makes tests/fixtures/reward: a tiny LlamaForSequenceClassification and its scores by transformers.

Run from the project's root: python scripts/make_reward_fixture.py
Weights are saved in bfloat16; the expected scores are computed in float32 from the saved weights,
one conversation at a time, and without padding.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

SOURCE = Path("tests/fixtures/golden/llama")
OUT = Path("tests/fixtures/reward")

CASES = [
    {"prompt": [{"role": "user", "content": "What is 2 + 2?"}],
     "responses": ["4", "It is four, as anybody can count.", "", "4"]},
    {"prompt": [{"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "Which colour has the sky?"}],
     "responses": ["Blue.", "The sky is blue because light scatters. " * 4]},
    {"prompt": [{"role": "user", "content": "Name a river."},
                {"role": "assistant", "content": "The Danube."},
                {"role": "user", "content": "And another one, please."}],
     "responses": ["Rhine", "  The Nile \n", "x"]},
    {"prompt": [{"role": "user", "content": "Grüße: 你好, мир! 🦀 é"}],
     "responses": ["🦀🦀 naïve façade", "привет", "日本語のテキスト"]},
    {"prompt": "A plain string.", "responses": ["Fine.", "No\n\nyes."]},
]


def messages(prompt, response):
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return prompt + [{"role": "assistant", "content": response}]


def main():
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=426, max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_theta=500000.0, bos_token_id=420, eos_token_id=424, pad_token_id=425,
        tie_word_embeddings=False, initializer_range=0.2, num_labels=1,
    )
    OUT.mkdir(parents=True, exist_ok=True)
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(OUT)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(SOURCE / name, OUT / name)
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    model = LlamaForSequenceClassification.from_pretrained(OUT, dtype=torch.float32).eval()
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    rows = []
    for case in CASES:
        row = dict(case, ids=[], scores=[], scores_pad_is_eot=[])
        for response in case["responses"]:
            text = tokenizer.apply_chat_template(messages(case["prompt"], response), tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids.count(420) == 1
            row["ids"].append(ids)
            for key, pad in [("scores", 425), ("scores_pad_is_eot", eot)]:
                model.config.pad_token_id = pad
                with torch.no_grad():
                    row[key].append(model(torch.tensor([ids])).logits[0, 0].item())
        rows.append(row)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    made = {"made_by": "scripts/make_reward_fixture.py", "versions": versions, "cases": rows}
    (OUT / "expected.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()

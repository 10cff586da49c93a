"""Makes tests/fixtures/lora: an adapter written by PEFT, its logits, and a training run of it.

Run from the project's root: python scripts/make_lora_fixture.py
Needs torch, transformers and peft. Everything is computed in float32 on the weights of the golden
llama; rows, order and loss are those of the golden training runs (batches of 4, SPPO, RMSprop,
linear schedule with one warmup step). The reference is the model with the adapter off.
"""

import json
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, get_linear_schedule_with_warmup

BASE = Path("tests/fixtures/golden/llama")
ROWS = json.loads(Path("tests/fixtures/golden/training_runs.json").read_text())["pairs"]
OUT = Path("tests/fixtures/lora")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BETA, RATE, STEPS, BATCH = 0.001, 5e-4, 8, 4


def base():
    return LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def last_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def logp(model, row, side):
    prompt, response = row["prompt_ids"], row[f"{side}_ids"]
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1).gather(1, torch.tensor(response).unsqueeze(1))
    return logps.sum()


def sppo_loss(rows, chosen, rejected, reference):
    losses = []
    for i, row in enumerate(rows):
        for side, logps in (("win", chosen), ("lose", rejected)):
            known = reference[i]["chosen" if side == "win" else "rejected"]
            target = (row[f"chosen_probs_{side}"] - 0.5) / BETA
            losses.append(0.5 * (logps[i] - known - target) ** 2)
    return sum(losses) / len(rows)


def train(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.RMSprop(trained, lr=RATE, alpha=0.99, eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, STEPS)
    with torch.no_grad(), model.disable_adapter():
        sides = ("chosen", "rejected")
        reference = [{s: logp(model, row, s).item() for s in sides} for row in ROWS]
    steps = []
    for step in range(STEPS):
        at = [(step * BATCH + i) % len(ROWS) for i in range(BATCH)]
        rows = [ROWS[i] for i in at]
        chosen = [logp(model, row, "chosen") for row in rows]
        rejected = [logp(model, row, "rejected") for row in rows]
        loss = sppo_loss(rows, chosen, rejected, [reference[i] for i in at])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        optimizer.step()
        steps.append({
            "loss": loss.item(), "grad_norm": norm.item(), "lr": schedule.get_last_lr()[0],
            "chosen_logps": [x.item() for x in chosen],
            "rejected_logps": [x.item() for x in rejected],
        })
        schedule.step()
    return steps


def main():
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(OUT)
    (OUT / "README.md").unlink(missing_ok=True)  # the card that PEFT writes
    settings = OUT / "adapter_config.json"
    written = json.loads(settings.read_text())
    written["target_modules"].sort()
    written["base_model_name_or_path"] = "llama"
    settings.write_text(json.dumps(written, indent=2) + "\n")

    ids = ROWS[0]["prompt_ids"] + ROWS[0]["chosen_ids"]
    expected = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}",
        "ids": ids,
        "base_logits": last_logits(base(), ids).tolist(),
        "logits": last_logits(PeftModel.from_pretrained(base(), OUT), ids).tolist(),
    }
    stabilised = PeftModel.from_pretrained(base(), OUT, config=LoraConfig(**{
        **config.to_dict(), "use_rslora": True, "auto_mapping": None, "peft_type": None}))
    expected["logits_rslora"] = last_logits(stabilised, ids).tolist()
    model = PeftModel.from_pretrained(base(), OUT, is_trainable=True)
    expected["run"] = {"beta": BETA, "learning_rate": RATE, "warmup_steps": 1, "steps": train(model),
                       "final_logits": last_logits(model, ids).tolist()}
    (OUT / "expected.json").write_text(json.dumps(expected) + "\n")
    print(expected["made_with"])
    print([round(step["loss"]) for step in expected["run"]["steps"]])
    gap = torch.tensor(expected["logits"]) - torch.tensor(expected["base_logits"])
    print("the adapter changes logits by up to", gap.abs().max().item())


if __name__ == "__main__":
    main()

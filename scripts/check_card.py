#!/usr/bin/env python3
"""Reads model cards as the Hugging Face Hub's client does.

    pip install huggingface_hub
    python3 scripts/check_card.py runs/default/iteration-3/model …

The metadata must parse, survive a round through ModelCard, and hold what every card has; evaluation
results are printed as the Hub would take them.
"""

import sys
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

for folder in sys.argv[1:]:
    path = Path(folder) / "README.md"
    card = ModelCard.load(path)
    again = ModelCard(str(card))
    assert card.data.to_dict() == again.data.to_dict(), f"{path}: another card after a round"
    assert card.data.pipeline_tag == "text-generation", path
    assert card.data.library_name in ("transformers", "peft"), path
    assert "sppo" in card.data.tags, path
    data = card.data.to_dict()
    if "model-index" in data:
        name, results = model_index_to_eval_results(data["model-index"])
        assert len(results) == len(card.data.eval_results), path
    shown = {key: data.get(key) for key in ("base_model", "datasets", "language", "license", "tags")}
    print(path, shown)
    for result in card.data.eval_results or []:
        print(f"  {result.dataset_name} ({result.dataset_type}): {result.metric_type} {result.metric_value}")

"""Makes tests/fixtures/winrate: annotations, a df_gamed.csv, and what alpaca_eval 0.6.6 makes of them.

Everything is synthetic. Needs a virtual environment of its own:

    python -m venv venv && venv/bin/pip install 'setuptools<81' alpaca_eval==0.6.6
    venv/bin/python scripts/make_winrate_fixture.py

alpaca_eval asks the Hub for df_gamed.csv; here it finds the synthetic one in a cache made for it.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "winrate"
INSTRUCTIONS = 300
RANDOM = np.random.default_rng(20240417)
DIFFICULTY = np.round(RANDOM.normal(0, 0.8, INSTRUCTIONS), 6)
WORDS = "ja nein doch é 漢字 🦙 tree a to".split()


def logistic(x):
    return 1 / (1 + np.exp(-x))


def text(length):
    """About `length` characters, of one to four bytes each."""
    words = []
    while sum(map(len, words)) + len(words) < length:
        words.append(str(RANDOM.choice(WORDS)))
    return " ".join(words)


def gamed():
    """Rows of two models that were told to be brief or long, as the columns of the official file are."""
    lines = ["index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, shift in [("baseline_concise", 1.2), ("baseline_verbose", -1.2)]:
        for index in range(INSTRUCTIONS):
            delta = shift + RANDOM.normal(0, 0.7)
            judged = logistic(-1.1 * np.tanh(delta) + RANDOM.normal(0, 1.5))
            judged = round(float(judged), 5)
            lines.append(
                f"{index},{model},{judged},{round(float(delta), 5)},{DIFFICULTY[index]},False"
            )
    return "\n".join(lines) + "\n"


def annotations(count, strength, preference=None, generator="policy", scale=30):
    rows = []
    for index in range(count):
        first = text(RANDOM.gamma(2, scale / 2))
        second = text(RANDOM.gamma(2.4, scale / 2))
        delta = (len(first) - len(second)) / scale
        score = strength - 0.9 * np.tanh(delta) + 0.6 * DIFFICULTY[index]
        judged = 1 + float(logistic(score + RANDOM.normal(0, 1.2)))
        judged = round(judged, 6) if preference is None else preference(index, judged)
        rows.append(
            {
                "instruction": f"Instruction {index}",
                "output_1": first,
                "generator_1": "reference",
                "output_2": second,
                "generator_2": generator,
                "annotator": "synthetic_judge",
                "preference": judged,
            }
        )
    return rows


def expected(rows):
    import pandas as pd
    from alpaca_eval.metrics import get_length_controlled_winrate

    frame = pd.DataFrame.from_records(rows)
    found = {"avg_length": int(frame["output_2"].str.len().mean())}
    for name in ["length_controlled_v1", "length_controlled_minimal"]:
        metrics = get_length_controlled_winrate(
            frame.copy(), glm_name=name, save_weights_dir=None, is_warn_extreme_changes=False
        )
        metrics = {key: float(value) for key, value in metrics.items()}
        if name == "length_controlled_v1":
            found |= metrics
        else:
            found["minimal"] = metrics["length_controlled_winrate"]
            found["minimal_standard_error"] = metrics["lc_standard_error"]
    return found


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    table = gamed()
    (OUT / "df_gamed.csv").write_text(table)
    cases = {
        "plain_120.json": annotations(120, 0.3),
        "all_300.jsonl": annotations(INSTRUCTIONS, -0.4),
        "missing_60.json": annotations(
            60, 0.1, lambda i, p: None if i % 7 == 3 else round(p, 6)
        ),
        "wins_40.json": annotations(40, 0.0, lambda i, p: 2),
        "ties_50.json": annotations(
            50, 0.0, lambda i, p: [0, 1, 1.5, 2, 2.0, round(p, 3)][i % 6]
        ),
        "itself_20.json": annotations(20, 0.0, generator="reference"),
    }
    for name, rows in cases.items():
        if name.endswith(".jsonl"):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (OUT / name).write_text("".join(lines))
        else:
            # As alpaca_eval itself writes it, but for the spaces.
            (OUT / name).write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n")
    with tempfile.TemporaryDirectory() as home:
        repository = Path(home) / "hub" / "datasets--tatsu-lab--alpaca_eval"
        commit = "0" * 40
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "df_gamed.csv").write_text(table)
        os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        result = {name: expected(rows) for name, rows in cases.items()}
    import alpaca_eval
    import sklearn
    from importlib.metadata import version

    made_by = {"alpaca_eval": version("alpaca_eval"), "scikit-learn": sklearn.__version__}
    text_of = json.dumps({"made_by": made_by, "cases": result}, indent=2)
    (OUT / "expected.json").write_text(text_of + "\n")
    size = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{size} bytes in {OUT} with {made_by}")


if __name__ == "__main__":
    main()

"""What attention buys on storyworld: presets with and without it, for the same minutes of training.

    python benchmarks/attention.py                      presets minute and coffee: some 15 minutes
    python benchmarks/attention.py --presets minute

The two of a preset train at once, with half of the cores each, so that whatever else the machine does hits both. They
train on storyworld; then measures the excess over the exact floor and the recall at labelled references on 300
stories of the split valid. Writes benchmarks/results/attention.json and docs/figures/storyworld-recall.svg, and
prints the table of docs/storyworld.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from pool import at_once
from report import FIGURES, about, write

from rhapsode import storyworld
from rhapsode.data import DataRequest
from rhapsode.evaluation import score
from rhapsode.inspection.cost import parameters_by_part
from rhapsode.progress import say
from rhapsode.recipe.presets import PRESETS
from rhapsode.sources import open_source
from rhapsode.storyworld import Accuracy, judge, report
from rhapsode.tokens import prepare
from rhapsode.training import train_run
from rhapsode.training.start import TrainingRequest, begin

FIGURE = FIGURES / "storyworld-recall.svg"
STORIES = 300
STORYWORLD = DataRequest(("storyworld",))


def measure(preset: str, with_attention: bool, folder: Path, threads: int) -> tuple[dict[str, Any], Accuracy]:
    """Trains one of a pair and asks it; returns its row of the table, and its recall."""
    torch.set_num_threads(threads)
    own = {} if with_attention else {"model": {"attention": "none"}}
    name = f"{preset}{'' if with_attention else ', no attention'}"
    ready = begin(TrainingRequest(STORYWORLD, preset, own), folder / name.replace(", ", "-"))
    outcome = train_run(ready.run, ready.train, ready.valid)
    model, tokenizer = ready.run.load_model(), ready.run.tokenizer
    result = score(model, prepare(open_source([f"storyworld:{STORIES}:valid"]), tokenizer))
    excess = judge.excess(result.nats, result.num_bytes, STORIES)
    stories = [storyworld.sample(seed, "valid") for seed in range(STORIES)]
    recall = judge.reference_scores(model, tokenizer, stories)
    row = {
        "name": name,
        "parameters": sum(parameters_by_part(model).values()),
        "training_seconds": round(outcome.progress.seconds, 1),
        "tokens": outcome.progress.tokens,
        "bits_per_byte": excess.bits_per_byte,
        "excess_bits_per_byte": excess.excess,
        "excess_bits_per_story": excess.excess_bits_per_story,
        "recall": recall.overall[0],
        "recall_by_distance": {key: share for key, (share, _) in recall.by_distance.items()},
    }
    say(json.dumps(row))
    return row, recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["minute", "coffee"])
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    recalls: dict[str, Accuracy] = {}
    threads = max(1, torch.get_num_threads() // 2)
    with tempfile.TemporaryDirectory() as folder, at_once(2) as pool:
        begin(TrainingRequest(STORYWORLD, "minute"), Path(folder) / "data")  # so that both find the token store
        for preset in arguments.presets:
            pair = [pool.submit(measure, preset, with_it, Path(folder), threads) for with_it in (True, False)]
            for row, recall in (future.result() for future in pair):
                rows.append(row)
                recalls[row["name"]] = recall
    chance = storyworld.chance(storyworld.sample(seed, "valid") for seed in range(STORIES))
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    report.plot_recall(recalls, FIGURE, chance)
    write("attention", {**about(), "threads": threads, "stories": STORIES, "rows": rows})
    bins = list(rows[0]["recall_by_distance"])
    print(
        "| | parameters | bits per byte | excess | excess per story, bits | right at references |",
        " | ".join(bins),
        "|",
    )
    print("|---" * (6 + len(bins)) + "|")
    for row in rows:
        far = " | ".join(f"{row['recall_by_distance'][name]:.1%}" for name in bins)
        print(
            f"| {row['name']} | {row['parameters']:,} | {row['bits_per_byte']:.4f} | {row['excess_bits_per_byte']:.4f}"
            f" | {row['excess_bits_per_story']:.1f} | {row['recall']:.1%} | {far} |"
        )


if __name__ == "__main__":
    main()

"""lm-evaluation-harness through `local-completions`, with its default tokenizer mode: equal to the Python API."""

import json
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import Served

import rhapsode

PAIRS = [
    ("The dog sleeps.", "The dog sleep."),
    ("Once upon a time there was a cat.", "Once upon a time there were a cat."),
    ("She likes the 🎉 bird.", "She like the 🎉 bird."),
    ("A cat and a dog are here.", "A cat and a dog is here."),
    ("The end.", "The end."),
]
CHOICE = """task: small_blimp
dataset_path: json
dataset_kwargs: {data_files: {train: PAIRS}}
output_type: multiple_choice
validation_split: train
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
num_fewshot: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
GENERATE = """task: small_generation
dataset_path: json
dataset_kwargs: {data_files: {train: PAIRS}}
output_type: generate_until
test_split: train
doc_to_text: "{{sentence_good}}"
doc_to_target: "{{sentence_bad}}"
generation_kwargs: {until: ["\\n", "zz"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
ROLLING = """task: small_rolling
dataset_path: json
dataset_kwargs: {data_files: {train: PAIRS}}
output_type: loglikelihood_rolling
test_split: train
doc_to_text: ""
doc_to_target: "{{sentence_good}}"
metric_list:
  - {metric: byte_perplexity}
metadata: {version: 1.0}
"""


@pytest.fixture
def found(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the harness makes of three small tasks; it needs no network, and leaves nothing behind."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval takes 450 MB: install it with make clients")
    from lm_eval.tasks import TaskManager

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in PAIRS),
        encoding="utf-8",
    )
    for name, task in (("choice", CHOICE), ("generate", GENERATE), ("rolling", ROLLING)):
        (tmp_path / f"{name}.yaml").write_text(task.replace("PAIRS", str(pairs)))
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": "tiny", "base_url": f"{served.url}/v1/completions", "num_concurrent": 1},
        tasks=["small_blimp", "small_generation", "small_rolling"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )


@pytest.mark.slow
def test_scores_and_texts_are_those_of_the_python_api(found: dict[str, Any], model: rhapsode.Model) -> None:
    """To the last digit of each log-probability, greedy or not, and with the same accuracy and texts."""
    right = 0
    samples = {sample["doc_id"]: sample for sample in found["samples"]["small_blimp"]}
    for number, pair in enumerate(PAIRS):
        expected = []
        for sentence, ((told, greedy),) in zip(pair, samples[number]["resps"], strict=True):
            ids = model.tokenizer.encode(f" {sentence}")
            values = model.score(f" {sentence}", per_token=True, end=False).texts[0].token_log_probabilities
            assert values is not None
            expected.append(sum(values))
            assert float(told) == expected[-1]
            likeliest = [model.next_tokens(model.tokenizer.decode(ids[:i]), k=1)[0].id for i in range(len(ids))]
            assert str(greedy) == str(likeliest == ids)
        right += expected[0] > expected[1] or (expected[0] == expected[1])
    assert found["results"]["small_blimp"]["acc,none"] == right / len(PAIRS)
    for sample in found["samples"]["small_generation"]:
        prompt = PAIRS[sample["doc_id"]][0]
        own = model.generate(prompt, max_tokens=12, temperature=0, stop=["\n", "zz", "</s>"])[0].text
        assert sample["resps"] == [[own]]
    bits = model.score([good for good, _ in PAIRS], end=False)
    perplexity = found["results"]["small_rolling"]["byte_perplexity,none"]
    assert perplexity == pytest.approx(2 ** (bits.bits_per_byte or 0), rel=1e-12)

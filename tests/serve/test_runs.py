"""/v1/models, /api/runs, /metrics, the state of the server, the description of its paths."""

import json
import shutil
from pathlib import Path

from serve.conftest import Served, serving

from rhapsode.inspection.cost import parameters_by_part
from rhapsode.run import Run


def test_models_as_clients_read_them(served: Served, tiny_run: Path) -> None:
    body = served.api.get("/v1/models").json()
    assert body["object"] == "list"
    entry = body["data"][0]
    assert (entry["id"], entry["object"], entry["owned_by"]) == ("tiny", "model", "rhapsode")
    assert entry["created"] > 1_500_000_000
    network = Run.open(tiny_run).load_model()
    assert entry["rhapsode"] == {
        "kind": "stacked",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "vocab_size": 300,
        "storyworld": False,
        "training": False,
        "name": "tiny",
        "end": "</s>",
    }
    assert served.api.get("/v1/models/tiny").json() == entry
    assert served.api.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_a_run_and_how_it_was_trained(served: Served, tiny_run: Path) -> None:
    """Config, parameters, metrics: those of the run directory, and from a line on those that came since."""
    run = Run.open(tiny_run)
    found = served.api.get("/api/runs/tiny").json()
    assert run.recipe is not None
    assert found["config"] == json.loads(json.dumps(run.recipe.to_dict()))
    assert found["parameters"] == parameters_by_part(run.load_model())
    assert found["metrics"] == run.metrics()
    assert len(found["metrics"]) > 2
    assert served.api.get("/api/runs/tiny?after=2").json()["metrics"] == run.metrics()[2:]
    losses = [line["valid_loss"] for line in run.metrics() if line["event"] == "valid"]
    (entry,) = served.api.get("/api/runs").json()["runs"]
    assert entry["best_valid_loss"] == min(losses)
    assert (entry["id"], entry["training"]) == ("tiny", False)
    assert served.api.get("/api/runs/other").status_code == 404


def test_live_while_it_trains(tiny_run: Path, tmp_path: Path) -> None:
    """Lines that are written while the server runs are there at the next question; training is told by the lock, and
    asking does not keep a training from beginning."""
    path = tmp_path / "live"
    shutil.copytree(tiny_run, path)
    (path / "log.txt").write_text(
        "100 parameters\nstep 5 of 10: train 1\n    Once upon a time\nstep 10 of 10: x\n    The end\n"
    )
    run = Run.open(path)
    count = len(run.metrics())
    with serving(path) as served, run.lock():
        found = served.api.get("/api/runs/live").json()
        assert found["training"] is True
        assert found["samples"] == [{"step": 5, "text": "Once upon a time"}, {"step": 10, "text": "The end"}]
        entry = {"event": "train", "step": 99, "sequences": 1, "tokens": 1, "seconds": 1.0, "train_loss": 2.0}
        with run.metrics_path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.write('{"half')
        assert served.api.get(f"/api/runs/live?after={count}").json()["metrics"] == [entry]
    assert not Run.open(path).is_training()


def test_counters(tiny_run: Path) -> None:
    """Requests by path and status, tokens of prompts and answers, histograms: exactly what was done."""
    with serving(tiny_run) as served:
        served.complete(prompt=[5, 6, 7], max_tokens=4, n=2, logit_bias={"1": -100})
        served.refused(400, prompt={})
        served.api.get("/v1/anything/SECRET")
        told = served.api.get("/metrics").text
    for line in (
        'rhapsode_requests_total{path="/v1/completions",status="200"} 1.0',
        'rhapsode_requests_total{path="/v1/completions",status="400"} 1.0',
        'rhapsode_requests_total{path="other",status="404"} 1.0',
        "rhapsode_prompt_tokens_total 8.0",  # with the begin token
        "rhapsode_written_tokens_total 8.0",
        "rhapsode_batch_size_sum 8.0",
        "rhapsode_seconds_to_first_token_count 2.0",
        "rhapsode_seconds_between_tokens_count 3.0",
        "rhapsode_running_texts 0.0",
    ):
        assert line in told.splitlines(), line
    assert "SECRET" not in told


def test_ready_until_it_ends(tiny_run: Path) -> None:
    with serving(tiny_run) as served:
        assert served.api.get("/healthz").status_code == served.api.get("/readyz").status_code == 200
        served.server.gate.closing = True
        assert served.api.get("/healthz").status_code == 200
        answer = served.api.get("/readyz")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "closing")
        assert served.api.post("/v1/completions", json={"prompt": "a"}).status_code == 503


def test_the_description_has_every_path(served: Served) -> None:
    """OpenAPI: what clients and tests are generated from."""
    described = served.api.get("/openapi.json").json()["paths"]
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/tokenize", "/api/inspect", "/api/runs"):
        assert path in described
    fields = served.api.get("/openapi.json").json()["components"]["schemas"]["CompletionQuestion"]["properties"]
    assert {"prompt", "best_of", "echo", "min_p", "repetition_penalty", "return_token_ids"} <= fields.keys()
    page = served.api.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "repetition_penalty" in page.text
    assert "<script" not in page.text


def test_files_of_the_page(served: Served) -> None:
    """Nothing but what lies in the page's folder, under a strict policy."""
    for name in ("..%2fhttp.py", "../http.py", "%2e%2e/http.py", "nothing.js", "__init__.py", "index.html/"):
        assert served.api.get(f"/page/{name}").status_code == 404, name

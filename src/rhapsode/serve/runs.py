"""/v1/models and /api/runs: which runs are served, how they were trained, and how they do while they train."""

import re
import time
from typing import Any

from rhapsode.inspection.cost import parameters_by_part
from rhapsode.serve.failures import Refusal
from rhapsode.serve.models import ServedModels, ServedRun, about_run
from rhapsode.terminal import told

STEP_OF_LINE = re.compile(r"step ([\d,]+)")
SAMPLE_INDENT = "    "  # before a sample in log.txt


def models_list(models: ServedModels) -> dict[str, Any]:
    """The body of /v1/models."""
    return {"object": "list", "data": [model_entry(served, models.max_context) for served in models.runs.values()]}


def model_entry(served: ServedRun, max_context: int) -> dict[str, Any]:
    """A model as OpenAI's clients read it, and what else is known of it."""
    return {
        "id": served.name,
        "object": "model",
        "created": created(served),
        "owned_by": "rhapsode",
        "max_model_len": max_context,
        "rhapsode": about_run(served),
    }


def created(served: ServedRun) -> int:
    """When the run was begun, in seconds since 1970; 0 where it does not say."""
    try:
        return int(time.mktime(time.strptime(served.run.about.get("created", ""), "%Y-%m-%d %H:%M:%S")))
    except (ValueError, TypeError, OverflowError):
        return 0


def runs_list(models: ServedModels) -> dict[str, Any]:
    """The body of /api/runs."""
    found = []
    for served in models.runs.values():
        losses = [line["valid_loss"] for line in metrics_of(served) if line["event"] == "valid"]
        about = about_run(served)
        found.append(
            {
                "id": served.name,
                "name": served.name,
                "parameters": about["parameters"],
                "created": created(served),
                "training": about["training"],
                "best_valid_loss": min(losses, default=None),
            }
        )
    return {"runs": found}


def run_details(served: ServedRun, after: int) -> dict[str, Any]:
    """The body of /api/runs/ID. after: how many lines of the metrics the client has already."""
    recipe = served.run.recipe
    return {
        "id": served.name,
        "name": served.name,
        "training": served.run.is_training(),
        "config": recipe.to_dict() if recipe else {"model": served.run.about["model"]},
        "parameters": parameters_by_part(served.network_on_paper),
        "metrics": metrics_of(served)[after:],
        "samples": samples_of(served),
    }


def metrics_of(served: ServedRun) -> list[dict[str, Any]]:
    """What metrics.jsonl holds now; raises Refusal where it is damaged."""
    try:
        return served.run.metrics()
    except (ValueError, OSError) as error:
        raise Refusal(500, told(error)) from None


def samples_of(served: ServedRun) -> list[dict[str, Any]]:
    """What the model wrote at its validations, as log.txt has it."""
    try:
        lines = (served.path / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found, step = [], 0
    for line in lines:
        if line.startswith(SAMPLE_INDENT):
            found.append({"step": step, "text": line.strip()})
        elif told_step := STEP_OF_LINE.match(line):
            step = int(told_step[1].replace(",", ""))
    return found

"""docs/serving.md: its lines for clients are run as they stand, against a server of another address and model."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from serve.conftest import Served
from serve.test_clients import no_network, run_llm

import rhapsode
from rhapsode.cli import app

__all__ = ["no_network"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def adapted(text: str, served: Served) -> str:
    return text.replace("http://127.0.0.1:8000", served.url).replace("cats", "tiny")


@pytest.mark.parametrize("module", ["openai", "langchain_openai"])
def test_python_clients(
    served: Served, model: rhapsode.Model, module: str, no_network: None, capfd: pytest.CaptureFixture
) -> None:
    """Would catch a line that a change of a client, or of the server, has broken."""
    pytest.importorskip(module)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (code,) = [block for block in blocks if f"from {module} import" in block]
    exec(compile(adapted(code, served), str(PAGE), "exec"), {})
    assert capfd.readouterr().out.strip()


def test_llm_lines(served: Served, no_network: None, tmp_path: Path) -> None:
    """`llm` once, and with the entry that the second line adds to its file."""
    pytest.importorskip("llm")
    text = adapted(PAGE.read_text(encoding="utf-8"), served)
    once = next(line for line in text.splitlines() if line.startswith("llm openai endpoint"))
    assert run_llm(*shlex.split(once)[1:]).strip()
    entry = next(line for line in text.splitlines() if line.startswith("echo '- {model_id"))
    (tmp_path / "extra-openai-models.yaml").write_text(shlex.split(entry)[1] + "\n")
    assert entry.split()[-1].strip('"').endswith("/extra-openai-models.yaml")
    assert run_llm("-m", "tiny", "Once upon", "-o", "max_tokens", "5")


def test_options_and_paths_are_there(served: Served) -> None:
    """Would catch an option or a path that has another name by now."""
    text = PAGE.read_text(encoding="utf-8")
    verb = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {name for parameter in verb.params for name in parameter.opts}
    named = set(re.findall(r"(?<=[`\s(])--[a-z-]+", text)) - {"--model", "--tasks", "--max-tokens"}
    assert named - {"--model_args"} <= options
    described = served.api.get("/openapi.json").json()["paths"].keys() | {"/docs", "/openapi.json"}
    for row in re.findall(r"^\| `(?:GET|POST) ([^|]*) \|", text, re.M):
        for path in re.findall(r"/[a-zA-Z_/.0-9]+", row):
            assert any(
                path.rstrip("/") == each or each.startswith(path.replace("NAME", "{name")) for each in described
            ), path

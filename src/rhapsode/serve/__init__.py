"""A server: the shapes of OpenAI's API for its clients, and /api for the page that shows a model think.

http.py           the application: who answers which path
server.py         the process: the address, signals, the end
connections.py    a client's connection, bounded in size and time
security.py       who may ask: Host, API key, size of a body, other origins
models.py         the served runs: loaded on first use, reloaded when training has a better one, unloaded
driver.py         the thread that drives the engines, and how what it makes reaches the clients
schemas.py        what may be asked, field by field; failures.py: how what is wrong is said
wanted.py         from a request to work for an engine
answers.py        from what an engine makes to what a client is told
completions.py    the answer as it comes, whole or in a stream, and what happens if nobody waits for it
tokens.py  inspecting.py  runs.py  metrics.py  described.py    the other paths

FastAPI, uvicorn, httptools and prometheus-client are needed by these files, and by nothing else.
"""

INSTALL = "the server needs FastAPI, uvicorn, httptools and prometheus-client: pip install 'rhapsode[serve]'"


def check_installed() -> None:
    """Raises ValueError, saying what to install, where a package of the server is missing."""
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError(INSTALL) from None

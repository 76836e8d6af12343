// The server as a source: /v1 streams, /api tells.

export class Server {
  serves = true;
  #key = "";

  // askForKey: () -> promise of the key that a server started with --api-key wants.
  constructor(askForKey) {
    this.askForKey = askForKey;
  }

  async models() {
    const { data } = await this.#json("v1/models");
    return data.map(({ id, rhapsode }) => ({ id, name: id, ...rhapsode }));
  }

  inspect(request) {
    return this.#json("api/inspect", request);
  }

  async runs() {
    return (await this.#json("api/runs")).runs;
  }

  run(id, after) {
    return this.#json(`api/runs/${encodeURIComponent(id)}?after=${after}`);
  }

  async write({ tokens, ...settings }, onToken, signal) {
    const response = await this.#fetch(
      "v1/completions",
      { ...settings, prompt: tokens, stream: true, logprobs: 1, return_token_ids: true },
      signal,
    );
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let done = false;
    for (let rest = "", part; !(part = await said(reader.read())).done;) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") done = true;
        else tell(JSON.parse(data), onToken);
      }
    }
    if (!done) throw new Error(STOPPED);
  }

  async #json(path, body) {
    return (await this.#fetch(path, body)).json();
  }

  async #fetch(path, body, signal) {
    const headers = {
      ...(body && { "Content-Type": "application/json" }),
      ...(this.#key && { Authorization: `Bearer ${this.#key}` }),
    };
    const response = await said(
      fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal }),
    );
    if (response.ok) return response;
    if (response.status === 401 && this.askForKey && (this.#key = await this.askForKey()))
      return this.#fetch(path, body, signal);
    const { error } = await response.json().catch(() => ({}));
    throw new Error(error?.message ?? `the server answered with status ${response.status}`);
  }
}

const STOPPED = "the server has stopped answering";

// A connection that breaks, in words.
async function said(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(STOPPED);
  }
}

function tell({ error, choices: [choice] = [] }, onToken) {
  if (error) throw new Error(error.message);
  if (!choice) return;
  const ids = choice.token_ids ?? [],
    { token_logprobs: found, text_offset: offsets } = choice.logprobs ?? {};
  const letters = Array.from(choice.text),
    last = ids.length - 1; // offsets count characters, of which some are two units
  ids.forEach((id, i) =>
    onToken({
      sample: choice.index,
      id,
      log_probability: found[i],
      text: letters.slice(offsets[i] - offsets[0], i === last ? undefined : offsets[i + 1] - offsets[0]).join(""),
      ended: i === last ? choice.finish_reason : null,
    }),
  );
}

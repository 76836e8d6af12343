// The model inside the file: a worker reads what the export put into the page.

const content = (id) => document.getElementById(id).textContent;

export class Offline {
  serves = false;

  constructor() {
    this.about = JSON.parse(content("about"));
    this.calls = new Map();
    this.last = 0;
    const url = URL.createObjectURL(new Blob([content("worker")], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.worker.onmessage = ({ data }) => this.#hear(data);
    this.worker.onerror = () =>
      this.calls.forEach(({ reject }) => reject(new Error("the model could not be started in this browser")));
    const weights = Uint8Array.from(atob(content("weights").trim()), (character) => character.charCodeAt(0));
    this.opened = this.#ask("open", { weights, description: JSON.parse(content("tokenizer")) });
  }

  async models() {
    await this.opened;
    return [this.about];
  }

  inspect(request) {
    return this.#ask("inspect", request);
  }

  write(request, onToken, signal) {
    const call = this.last + 1;
    signal?.addEventListener("abort", () => this.#ask("stop", call));
    return this.#ask("write", request, onToken);
  }

  #ask(name, request, onToken) {
    const call = ++this.last;
    this.worker.postMessage({ call, name, request });
    return new Promise((resolve, reject) => this.calls.set(call, { resolve, reject, onToken }));
  }

  #hear({ call, tokens, answer, error }) {
    const { resolve, reject, onToken } = this.calls.get(call);
    if (tokens) return tokens.forEach(onToken);
    this.calls.delete(call);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  }
}

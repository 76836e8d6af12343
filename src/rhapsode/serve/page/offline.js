// The model inside the file: a worker reads what the export put into the page.

// The text of an element, if it is what was exported: a flipped bit in it would be another token or weight in silence.
function content(id) {
  const element = document.getElementById(id),
    sum = crc32(new TextEncoder().encode(element?.textContent ?? ""));
  if (element?.dataset.crc32 !== sum.toString(16).padStart(8, "0"))
    throw new Error(`This file is damaged (its ${id}): export it again`);
  return element.textContent;
}

// As zlib has it. The browser's own digests are not there for pages that came over plain http.
export function crc32(bytes) {
  const table = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
    return n;
  });
  let sum = -1;
  for (const byte of bytes) sum = (sum >>> 8) ^ table[(sum ^ byte) & 255];
  return ~sum >>> 0;
}

export class Offline {
  serves = false;

  constructor() {
    this.calls = new Map();
    this.last = 0;
    this.opened = this.#open();
  }

  async #open() {
    this.about = JSON.parse(content("about"));
    const url = URL.createObjectURL(new Blob([content("worker")], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.worker.onmessage = ({ data }) => this.#hear(data);
    this.worker.onerror = () =>
      this.calls.forEach(({ reject }) => reject(new Error("the model could not be started in this browser")));
    const weights = Uint8Array.from(atob(content("weights").trim()), (character) => character.charCodeAt(0));
    await this.#ask("open", { weights, description: JSON.parse(content("tokenizer")) });
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

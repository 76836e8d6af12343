// What the reader has before them: a model, the tree of stories, the settings, and where they look. Knows no element;
// says with events what changed: `model`, `path`, `token`, `busy`, `cursor`, `settings`, `facts`, `failed`.

import { bitsOf } from "./dom.js";
import { Tree } from "./tree.js";

export const SETTINGS = {
  temperature: 0.8,
  top_k: 0,
  top_p: 1,
  min_p: 0,
  repetition_penalty: 1,
  max_tokens: 200,
  n: 1,
  seed: 0,
};
// From, to, and the step of a dial. A link may bring other values: no dial could set them.
export const LIMITS = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_k: { min: 0, max: 40, step: 1 },
  top_p: { min: 0.05, max: 1, step: 0.05 },
  min_p: { min: 0, max: 1, step: 0.01 },
  repetition_penalty: { min: 1, max: 2, step: 0.05 },
  max_tokens: { min: 10, max: 1000, step: 10 },
  n: { min: 1, max: 6, step: 1 },
  seed: { min: 0, max: 4294967295, step: 1 },
};
const END = "∎ the end"; // what the token that ends a story is called here
const TOLD = 40; // tokens of a place, the likeliest

export class Session extends EventTarget {
  tree = new Tree();
  settings = { ...SETTINGS };
  cursor = 0; // a token of the path, or its length: what comes next
  given = 0; // how many tokens at the path's beginning a person typed
  failure = null;
  pruned = null; // the tree's branches and which was current, before a prune that can be undone
  facts = null; // storyworld's: what the true distribution gives each token, and the references
  #looks = new Map();
  #writing = null;

  constructor(source) {
    super();
    this.source = source;
  }

  // What went wrong, and what tries it again; null where all is well.
  fail(failure) {
    this.failure = failure;
    this.say("failed", failure);
  }

  say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  get path() {
    return this.tree.path();
  }

  get text() {
    return this.path.map(({ text }) => text).join("");
  }

  get busy() {
    return this.#writing !== null;
  }

  get ended() {
    return this.path.at(-1)?.ends ?? false;
  }

  // Where a reader stands who has read all of it: what comes next, or the token that ended the story.
  get end() {
    return this.path.length - (this.ended ? 1 : 0);
  }

  // A place with something to see: a word near the beginning that was one of some likely ones.
  get telling() {
    const off = this.path
      .slice(12, 80)
      .map(({ bits, text }) => (/\p{L}{3}/u.test(text) ? Math.abs(bits - 2.5) : Infinity));
    return off.length ? 12 + off.indexOf(Math.min(...off)) : 0;
  }

  // -- reading ------------------------------------------------------------------------------------------------------

  // The tokens of a text or of ids, each with its surprise in bits.
  async tokens(what) {
    const { tokens, log_probabilities: found } = await this.source.inspect({
      model: this.model.id,
      ...what,
      truth: false,
    });
    return tokens.map((token, i) => this.#told({ ...token, ends: token.piece === this.model.end }, found[i]));
  }

  #told(token, log_probability) {
    return { ...token, piece: token.ends ? END : token.piece, bits: bitsOf(log_probability) };
  }

  // What the model thought before token i of the path came, and what it kept after it: {before, after}.
  async look(i, top = TOLD) {
    const tokens = this.path.map(({ id }) => id),
      key = `${i} ${top}`;
    if (!this.#looks.has(key)) {
      const positions = i < tokens.length ? [i, i + 1] : [i];
      const request = { model: this.model.id, tokens, positions, top };
      this.#looks.set(
        key,
        this.source.inspect(request).then(({ positions: [before, after = null] }) => {
          for (const each of [...before.next, ...(before.truth?.next ?? [])])
            if (each.piece === this.model.end) each.piece = END;
          return { before, after };
        }),
      );
      this.#looks.get(key).catch(() => this.#looks.delete(key));
    }
    return this.#looks.get(key);
  }

  // -- going on ---------------------------------------------------------------------------------------------------

  async choose(model) {
    if (model === this.model) return;
    const text = this.text;
    this.model = model;
    this.say("model");
    this.tree = new Tree();
    if (text) await this.begin(text, false);
  }

  // A story of its own that begins with a prompt; whether the model writes on.
  async begin(prompt, writes = true) {
    const read = await this.#tried(
      async () => {
        const tokens = prompt ? await this.tokens({ text: prompt }) : [];
        this.tree.add(null, 0, tokens);
        this.#changed(tokens.length, tokens.length);
      },
      () => this.begin(prompt, writes),
    );
    if (read && writes) await this.write();
  }

  // A finished story, by its ids.
  async open(ids) {
    this.tree.add(null, 0, await this.tokens({ tokens: ids }));
    this.#changed(0);
  }

  // The path up to token i, then another token; the model writes on from there.
  async branch(i, id) {
    if (this.busy) return;
    const read = await this.#tried(
      async () => {
        const ids = [...this.path.slice(0, i).map((token) => token.id), id];
        const tokens = await this.tokens({ tokens: ids });
        this.tree.add(this.tree.current, i, tokens.slice(i));
        this.#changed(i);
      },
      () => this.branch(i, id),
    );
    if (read) await this.write();
  }

  // The path as a person rewrote it: what they left of its beginning is shared.
  async edit(text) {
    if (text === this.text) return;
    await this.#tried(
      async () => {
        const tokens = await this.tokens({ text }),
          path = this.path;
        const same = tokens.findIndex(({ id }, i) => id !== path[i]?.id);
        const at = same < 0 ? tokens.length : same;
        this.tree.add(this.tree.current, at, tokens.slice(at));
        this.#changed(at);
      },
      () => this.edit(text),
    );
  }

  // Writes on where the path ends: in the current branch, or in as many new ones as there are samples.
  async write() {
    if (this.busy || this.ended) return;
    const tokens = this.path.map(({ id }) => id),
      { n, seed } = this.settings,
      from = this.tree.current,
      at = tokens.length;
    const branches =
      n === 1 && from !== null ? [from] : Array.from({ length: n }, () => this.tree.add(from, at, []).id);
    this.tree.current = branches[0];
    this.samples = n > 1 ? branches : [];
    this.facts = null;
    this.cursor = at;
    this.pruned = null;
    this.#writing = new AbortController();
    this.say("busy");
    if (n > 1 || from === null) this.say("path");
    await this.#tried(
      () =>
        this.source.write(
          { model: this.model.id, tokens, ...this.settings },
          (token) => {
            const { sample, log_probability, ended, id, text, piece = text } = token;
            const added = this.#told({ id, text, piece, ends: ended === "stop" }, log_probability);
            this.tree.append(branches[sample], added);
            this.#looks.clear();
            this.say("token", { branch: branches[sample], token: added });
          },
          this.#writing.signal,
        ),
      () => this.write(),
    );
    this.#writing = null;
    if (!this.failure) this.set({ seed: (seed + n) % (LIMITS.seed.max + 1) }); // sample i drew with seed + i
    this.say("busy");
    this.#know();
  }

  stop() {
    this.#writing?.abort();
  }

  walk(id) {
    if (this.busy) return;
    this.tree.current = id;
    this.#changed(this.end);
  }

  prune(id) {
    if (this.busy) return;
    const before = { branches: new Map(this.tree.branches), current: this.tree.current };
    this.tree.prune(id);
    this.#changed(this.end, 0, before);
  }

  // The tree as it was before the last prune, as long as nothing else has changed.
  unprune() {
    if (this.busy || !this.pruned) return;
    Object.assign(this.tree, this.pruned);
    this.#changed(this.end);
  }

  point(cursor) {
    this.cursor = Math.max(0, Math.min(cursor, this.path.length));
    this.say("cursor");
  }

  set(settings) {
    Object.assign(this.settings, settings);
    this.say("settings");
  }

  #changed(cursor, given = 0, pruned = null) {
    this.given = given;
    this.pruned = pruned;
    this.facts = null;
    this.samples = [];
    this.cursor = cursor;
    this.#looks.clear();
    this.say("path");
    this.#know();
  }

  // What storyworld knows of the path; kept only if the path is still the same when the answer comes.
  async #know() {
    if (!this.model.storyworld || this.busy || !this.source.serves) return;
    const path = this.path,
      tokens = path.map(({ id }) => id);
    const found = await this.source.inspect({ model: this.model.id, tokens, truth: true }).catch(() => null);
    if (!found || this.busy || this.path.length !== path.length) return;
    this.facts = found;
    this.say("facts");
  }

  async #tried(what, again) {
    try {
      await what();
      this.fail(null);
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.fail({ message: error.message, again });
      return false;
    }
  }

  // -- keeping ------------------------------------------------------------------------------------------------------

  get state() {
    return {
      version: 1,
      model: this.model.id,
      settings: this.settings,
      cursor: this.cursor,
      text: this.text,
      tree: this.tree.toJSON(),
    };
  }

  // As a link or a file has it. Of another model's story only the text can be read.
  async restore(state, models) {
    const model = models.find(({ id }) => id === state.model);
    this.model = model ?? this.model;
    for (const name in SETTINGS) {
      const { min, max, step } = LIMITS[name],
        value = state.settings[name];
      if (!Number.isFinite(value)) continue;
      this.settings[name] = Math.max(min, Math.min(step < 1 ? value : Math.floor(value), max));
    }
    this.say("settings");
    await this.#tried(
      async () => {
        if (model)
          this.tree = await Tree.fromJSON(state.tree, (ids) => (ids.length ? this.tokens({ tokens: ids }) : []));
        else this.tree.add(null, 0, await this.tokens({ text: state.text ?? "" }));
        this.#changed(Number.isInteger(state.cursor) ? Math.max(0, Math.min(state.cursor, this.path.length)) : 0);
        if (!model)
          this.fail({
            message: `This was written with another model, ${state.model}: its text, as this one reads it`,
          });
      },
      () => this.restore(state, models),
    );
  }
}

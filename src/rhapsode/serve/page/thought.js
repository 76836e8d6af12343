// The panel: what the model thought where the reader looks. Its surprise, the alternatives, the distribution that the
// dials reshape, what it looked at and copied from, and what its memory did.

import { announce, bitsOf, element, find, percent, shape } from "./dom.js";
import { memoryOf } from "./memory.js";
import { distribution } from "./sampling.js";
import { LIMITS } from "./session.js";

const MOST_COLUMNS = 40; // tokens in the chart
const LEAST_GATE = 0.001; // of copying that is told of
const PAUSE = 90; // milliseconds at a place before the whole distribution is asked for
const DIALS = [
  ["temperature", "Temperature", "low: the likeliest; high: anything"],
  ["top_p", "Top-p", "the fewest that make up this share"],
  ["top_k", "Top-k", "so many of the likeliest"],
  ["n", "Samples", "several ways to go on, side by side"],
];
const MORE = [
  ["min_p", "Min-p", "Only tokens at least this share as likely as the likeliest."],
  ["repetition_penalty", "Repetition", "Above 1, what was already said becomes less likely."],
  ["max_tokens", "Length", "Tokens to write at most."],
];

export class Thought {
  #place = -1;
  #whole = null; // all of the vocabulary's probabilities at the place, once they are there
  #timer = 0;
  #told = null;

  constructor(session, story) {
    Object.assign(this, { session, story });
    const [title, surprise, bars, truth, chart, sources, memory] = ["h2", "p", "ul", "p", "div", "div", "div"].map(
      (tag) => element(tag),
    );
    Object.assign(this, { title, surprise, bars, truth, chart, sources, memory });
    bars.className = "bars";
    surprise.className = truth.className = "soft";
    this.dials = [...DIALS, ...MORE].map((dial) => this.#dial(dial));
    const seed = element("input", {
      type: "number",
      ...LIMITS.seed,
      id: "dial-seed",
      value: session.settings.seed,
      onchange: () => session.set({ seed: Math.max(0, Math.floor(Number(seed.value) || 0)) }),
    });
    this.seed = seed;
    find("thought").replaceChildren(
      title,
      surprise,
      bars,
      truth,
      element("h3", {}, "What it is drawn from"),
      chart,
      element(
        "p",
        { class: "soft key" },
        ...["own", "kept", "cut"].flatMap((style, i) => [
          element("i", { class: style }),
          ["the model's own", "drawn from", "cut"][i],
        ]),
      ),
      ...this.dials.slice(0, DIALS.length).map(({ node }) => node),
      element(
        "details",
        {},
        element("summary", {}, "More settings"),
        ...this.dials.slice(DIALS.length).map(({ node }) => node),
        element(
          "div",
          { class: "dial" },
          element("label", { for: "dial-seed" }, "Seed"),
          seed,
          element("small", {}, "The same seed writes the same story; it counts up with each."),
        ),
      ),
      sources,
      memory,
    );
    for (const type of ["path", "cursor", "looking", "facts"]) session.addEventListener(type, () => this.refresh());
    session.addEventListener("busy", () => {
      if (session.busy) find("thought").classList.add("stale"); // it tells of what stood there before
      else this.refresh();
    });
    session.addEventListener("settings", () => {
      this.#turn();
      this.#chart();
    });
    session.addEventListener("chosen", ({ detail }) => this.bars.querySelectorAll("button")[detail]?.click());
    find("heads").addEventListener("change", () => this.#told && this.#lines());
    this.#turn();
  }

  #dial([name, label, effect]) {
    const output = element("output", { for: `dial-${name}` });
    const input = element("input", {
      type: "range",
      id: `dial-${name}`,
      ...LIMITS[name],
      "aria-describedby": `effect-${name}`,
      oninput: () => this.session.set({ [name]: Number(input.value) }),
    });
    return {
      name,
      input,
      output,
      node: element(
        "div",
        { class: "dial" },
        element("label", { for: `dial-${name}` }, label),
        input,
        output,
        element("small", { id: `effect-${name}` }, effect),
      ),
    };
  }

  #turn() {
    const { settings } = this.session;
    for (const { name, input, output } of this.dials) {
      input.value = settings[name];
      output.textContent = name === "top_k" && !settings[name] ? "all" : settings[name];
    }
    this.seed.value = settings.seed;
  }

  async refresh() {
    const { session, story } = this,
      place = story.place;
    if (session.busy || !session.model) return;
    this.#place = place;
    this.#whole = null;
    clearTimeout(this.#timer);
    try {
      const told = await session.look(place);
      if (this.#place !== place || session.busy) return;
      this.#told = told;
      this.#show(place, told);
      this.#timer = setTimeout(() => this.#fetchWhole(place), PAUSE);
    } catch (error) {
      if (this.#place === place && !session.failure)
        session.fail({ message: error.message, again: () => this.refresh() });
    }
  }

  async #fetchWhole(place) {
    const found = await this.session.look(place, 0).catch(() => null);
    if (!found || this.#place !== place) return;
    this.#whole = found.before.next;
    this.#chart();
  }

  #show(place, { before, after }) {
    const { session } = this,
      token = session.path[place];
    find("thought").classList.remove("stale");
    this.title.replaceChildren(...(token ? inItsWord(session.path, place) : ["What comes next?"]));
    this.surprise.textContent = token
      ? `${token.bits.toFixed(1)} bits of surprise: ${odds(token.bits)}`
      : "The model has read all of the story. These may follow:";
    this.#bars(place, token, before);
    this.#lines();
    this.memory.replaceChildren(...memoryOf(before.hidden, after?.hidden ?? null));
    this.#chart();
    if (token && document.activeElement === find("story")) {
      announce(
        `${token.text.trim() || token.piece}, ${token.bits.toFixed(1)} bits. Expected: ${before.next
          .slice(0, 3)
          .map(({ piece, probability }) => `${plain(piece)} ${percent(probability)}`)
          .join(", ")}`,
      );
    }
  }

  #bars(place, token, { next, truth }) {
    const rows = next.slice(0, 5),
      of = new Map(truth?.next.map(({ id, probability }) => [id, probability]));
    const add = (each) => rows.some(({ id }) => id === each?.id) || rows.push(each);
    if (token) add({ ...token, probability: 2 ** -token.bits });
    const rarest = next.at(-1).probability; // of those that were told: one that was not is below
    const { departed } = this.story,
      listed = [...of.values()].reduce((a, b) => a + b, 0),
      all = listed > 1 - 1e-6;
    const inTruth = (id) =>
      of.has(id) || all || (id === token?.id && departed === place)
        ? percent(of.get(id) ?? 0)
        : `<${percent(Math.min(...of.values())).replace("<", "")}`;
    for (const each of truth?.next.slice(0, 3) ?? [])
      add(next.find(({ id }) => id === each.id) ?? { ...each, probability: rarest, below: true });
    this.bars.replaceChildren(
      ...rows.map(({ id, piece, probability, below }, i) => {
        const came = id === token?.id;
        return element(
          "li",
          { class: came && "came" },
          element(
            "button",
            { type: "button", disabled: came, onclick: () => this.session.branch(place, id) },
            element("kbd", { "aria-hidden": "true" }, i < 5 ? i + 1 : ""),
            element("span", { class: "piece" }, shown(piece)),
            element(
              "span",
              {},
              element("span", { class: "bar", "--share": probability }),
              truth && element("span", { class: "bar true", "--share": of.get(id) ?? 0 }),
            ),
            element(
              "span",
              { class: "number" },
              below ? `<${percent(probability).replace("<", "")}` : percent(probability),
              truth && [
                element("span", { class: "unseen" }, ", in truth "),
                element("span", { class: "is-true" }, inTruth(id)),
              ],
              element("span", { class: "unseen" }, came ? ", this came" : ", write on with it"),
            ),
          ),
        );
      }),
    );
    this.truth.replaceChildren(
      ...(truth
        ? [
            element("span", { class: "is-true" }, "Green"),
            ` is the truth: what storyworld's grammar gives. The model wastes ${truth.excess_bits.toFixed(2)} bits here.`,
          ]
        : []),
    );
    if (departed === null) return;
    const { path } = this.session,
      word = path[departed].ends ? [`“${path[departed].piece}”`] : inItsWord(path, departed);
    if (!truth)
      this.truth.replaceChildren(
        "There is no truth here: since ",
        ...word,
        " (the wavy line) this is no story of storyworld's any more.",
      );
    else if (departed === place) this.truth.append(" By the grammar, ", ...word, " cannot stand here.");
  }

  // The model's own distribution in outline, what is drawn from in colour, what is cut in grey.
  #chart() {
    const whole = this.#whole ?? this.#told?.before.next;
    if (!whole) return;
    const { settings, path } = this.session,
      seen = this.#whole ? path.slice(0, this.#place).map(({ id }) => id) : [];
    const byId = new Map(seen.map((id) => [id, true]));
    const logits = whole.map(({ probability }) => Math.log(Math.max(probability, 1e-300)));
    const drawn = distribution(
      logits,
      settings,
      whole.flatMap(({ id }, i) => (byId.has(id) ? [i] : [])),
    );
    const column = (style, i, p) =>
      shape("rect", { class: style, x: i + 0.15, width: 0.7, y: 1 - Math.sqrt(p), height: Math.sqrt(p) });
    const columns = whole
      .slice(0, MOST_COLUMNS)
      .flatMap(({ probability: own }, i) => [
        column(drawn[i] > 0 ? "kept" : "cut", i, drawn[i] || own),
        column("own", i, own),
      ]);
    const kept = drawn.reduce((n, p) => n + (p > 0), 0),
      best = whole[drawn.indexOf(drawn.reduce((a, b) => Math.max(a, b)))];
    const most = `“${plain(best.piece)}”: ${percent(Math.max(...drawn))}`,
      share = `${kept.toLocaleString("en")} of ${whole.length.toLocaleString("en")} tokens can be drawn`,
      words = this.#whole ? `${share}; ${most}` : most;
    this.chart.replaceChildren(
      shape(
        "svg",
        {
          class: "chart",
          viewBox: `0 0 ${MOST_COLUMNS} 1`,
          preserveAspectRatio: "none",
          role: "img",
          "aria-label": words,
        },
        ...columns,
      ),
      element("p", { class: "soft" }, words + "."),
    );
  }

  // -- where it looked ---------------------------------------------------------------------------------------------

  #lines() {
    const { before } = this.#told,
      select = find("heads"),
      names = [
        "all heads",
        ...before.attention.map(
          ({ part, head }) =>
            `${part.replace(/^blocks\.(\d+)\.\w+$/, (_, n) => `block ${Number(n) + 1}`)}, head ${head + 1}`,
        ),
      ];
    if (select.options.length !== names.length)
      select.replaceChildren(...names.map((name, i) => element("option", { value: i }, name)));
    find("heads-label").hidden = before.attention.length < 2;
    const chosen = Number(select.value) ? [before.attention[Number(select.value) - 1]] : before.attention;
    const seen = (before.attention[0]?.weights ?? []).map(
      (_, n) => chosen.reduce((sum, { weights }) => sum + weights[n], 0) / chosen.length,
    );
    const copied = (before.copy?.weights ?? []).map((weight) => weight * before.copy.gate);
    const reference = this.story.reference(this.#place);
    const lines = (weights, kind) => weights.map((weight, n) => ({ place: n - 1, weight, kind }));
    this.story.draw([
      ...lines(seen, "seen"),
      ...lines(copied, "copied"),
      ...(reference?.places ?? []).map((place) => ({ place, weight: 0.5, kind: "true" })),
    ]);
    this.sources.replaceChildren(
      ...this.#list("It looked at", "is-seen", seen),
      ...(before.copy?.gate >= LEAST_GATE
        ? this.#list(
            `It copies with ${percent(before.copy.gate)}, from`,
            "is-copied",
            before.copy.weights,
            before.copy.probability === null
              ? ""
              : `The chance that this token was copied: ${percent(before.copy.probability)}.`,
          )
        : []),
      ...(reference
        ? [
            element("h3", { class: "is-true" }, "It refers"),
            element(
              "p",
              { class: "soft" },
              `“${reference.right}” was told ${reference.distance} words before (the green line; a fact of the sort “${reference.kind}”). Wrong would be ${reference.wrong.map((word) => `“${word}”`).join(", ")}.`,
            ),
          ]
        : []),
    );
  }

  #list(title, kind, weights, note = "") {
    const { path } = this.session;
    const best = weights
      .map((weight, n) => ({ weight, n }))
      .sort((a, b) => b.weight - a.weight)
      .slice(0, 5)
      .filter(({ weight }) => weight >= 0.01);
    if (!best.length) return [];
    const items = best.map(({ weight, n }) =>
      element("li", {}, element("b", {}, n ? shown(path[n - 1].piece) : "the beginning"), ` ${percent(weight)}`),
    );
    return [
      element("h3", { class: kind }, title),
      element("ul", { class: "sources" }, ...items),
      note && element("p", { class: "soft" }, note),
    ];
  }
}

// A token with the rest of its word, which is paler.
function inItsWord(path, place) {
  const { text, piece, ends } = path[place];
  if (ends) return ["The story ends"];
  if (!text.trim()) return [`“${shown(piece)}”`];
  const [before, after] = [path.slice(Math.max(0, place - 8), place), path.slice(place + 1, place + 9)].map((tokens) =>
    tokens.map((token) => token.text).join(""),
  );
  const rest = (letters) => element("span", { class: "soft" }, letters);
  return [
    "“",
    rest(/^\s/.test(text) ? "" : /[\p{L}\p{M}]*$/u.exec(before)[0]),
    text.trim(),
    rest(/\s$/.test(text) ? "" : /^[\p{L}\p{M}]*/u.exec(after)[0]),
    "”",
  ];
}

const shown = (piece) =>
  piece
    .replace(/\n|\\n/g, "↵")
    .replace(/^<0x(..)>$/, "byte $1")
    .replaceAll("▁", "\u00a0")
    .trimStart() || "␣";
const plain = (piece) => shown(piece).replace("␣", "a blank").replaceAll("↵", "a new line");

function odds(bits) {
  if (bits < 0.1) return "it was sure of this";
  const one = 2 ** bits;
  return one < 20
    ? `one chance in ${one.toFixed(one < 3 ? 1 : 0)}`
    : one < 1e6
      ? `one chance in ${Number(one.toPrecision(2)).toLocaleString("en")}`
      : "it would not have thought of it";
}

// Runs: how each was trained, its losses and samples, live while it trains; and two models on the same prompt.

import { element, find, shape } from "./dom.js";

const EVERY = 2000; // milliseconds between looks at a run in training
const WIDTH = 560,
  HEIGHT = 260,
  LEFT = 44,
  BOTTOM = 34;
const LINES = [
  ["train_loss", "training", "one"],
  ["valid_loss", "validation", "two"],
];

export class Runs {
  #chosen = null;
  #timer = 0;
  #metrics = [];

  constructor(session, models) {
    Object.assign(this, { session, models, box: find("view-runs") });
  }

  async open() {
    clearTimeout(this.#timer);
    try {
      const runs = await this.session.source.runs();
      this.#chosen ??= runs[0]?.id;
      this.list = element("div");
      this.details = element("div");
      this.box.replaceChildren(this.list, this.details, this.#beside());
      this.#list(runs);
      this.#show(this.#chosen);
    } catch (error) {
      this.session.fail({ message: error.message, again: () => this.open() });
    }
  }

  #list(runs) {
    this.list.replaceChildren(
      element("h2", {}, "Runs"),
      element(
        "table",
        {},
        element("thead", {}, row("th", "run", "parameters", "best validation loss", "state")),
        element(
          "tbody",
          {},
          ...runs.map(({ id, name, parameters, best_valid_loss: best, training }) =>
            row(
              "td",
              element(
                "button",
                {
                  type: "button",
                  class: "plain",
                  "aria-pressed": String(id === this.#chosen),
                  onclick: () => this.#show(id),
                },
                name,
              ),
              number(parameters.toLocaleString("en")),
              number(best === null ? "" : best.toFixed(4)),
              training ? element("span", { class: "live" }, "training") : "done",
            ),
          ),
        ),
      ),
    );
  }

  async #show(id) {
    if (!id) return;
    if (id !== this.#chosen || !this.#metrics.length) this.#metrics = [];
    this.#chosen = id;
    clearTimeout(this.#timer);
    try {
      const run = await this.session.source.run(id, this.#metrics.length);
      if (this.#chosen !== id) return;
      this.#metrics.push(...run.metrics);
      this.#draw(run);
      if (run.training && !this.box.hidden) this.#timer = setTimeout(() => this.#show(id), EVERY);
    } catch (error) {
      this.session.fail({ message: error.message, again: () => this.#show(id) });
    }
  }

  #draw({ name, training, config, parameters, samples }) {
    for (const button of this.list.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(button.textContent === name));
    const last = this.#metrics.at(-1),
      valid = this.#metrics.filter(({ event }) => event === "valid").at(-1);
    const told = [
      last && `${last.tokens.toLocaleString("en")} tokens in ${Math.round(last.seconds)} s`,
      valid && `validation ${valid.valid_loss.toFixed(4)} nats a token`,
      valid?.bits_per_byte && `${valid.bits_per_byte.toFixed(4)} bits a byte`,
    ];
    const open = [...this.details.querySelectorAll("details")].map((node) => node.open);
    this.details.replaceChildren(
      element("h2", { class: training && "live" }, name),
      element("p", { class: "soft number" }, told.filter(Boolean).join(" · ") || "No metrics: it was not trained here"),
      element(
        "div",
        { class: "columns" },
        this.#curve(),
        element(
          "div",
          {},
          element("h3", {}, "Samples as they came"),
          ...samples
            .slice(-6)
            .reverse()
            .map(({ step, text }) =>
              element(
                "div",
                { class: "card" },
                element("p", { class: "soft number" }, `step ${step.toLocaleString("en")}`),
                element("p", { class: "words", dir: "auto" }, text),
              ),
            ),
          samples.length ? null : element("p", { class: "soft" }, "None were written."),
        ),
      ),
      element(
        "details",
        { open: open[0] },
        element("summary", {}, "Config and parameters"),
        element(
          "div",
          { class: "columns" },
          this.#table("Parameters", parameters),
          ...Object.entries(config).map(([section, fields]) => this.#table(section, fields)),
        ),
      ),
    );
  }

  #table(title, fields) {
    const rows = Object.entries(fields).filter(([, value]) => value !== 0 || title !== "Parameters");
    return element(
      "div",
      {},
      element("h3", {}, title),
      element(
        "table",
        {},
        element(
          "tbody",
          {},
          ...rows.map(([name, value]) =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, name),
              element(
                "td",
                { class: typeof value === "number" && "number" },
                typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 6 }) : String(value),
              ),
            ),
          ),
        ),
      ),
    );
  }

  // Losses over tokens; the axis begins at the lowest, so that the end of a curve can be read.
  #curve() {
    const series = LINES.map(([field, name, style]) => ({
      name,
      style,
      points: this.#metrics
        .filter((line) => Number.isFinite(line[field]) && (field !== "train_loss" || line.event === "train"))
        .map((line) => [line.tokens, line[field]]),
    })).filter(({ points }) => points.length);
    if (!series.length) return element("p", { class: "soft" }, "There is no curve yet.");
    const all = series.flatMap(({ points }) => points),
      losses = all.map(([, y]) => y).sort((a, b) => a - b);
    const most = Math.max(1, ...all.map(([x]) => x)),
      low = losses[0],
      high = Math.max(low + 0.1, losses[Math.floor(losses.length * 0.97)]);
    const x = (tokens) => LEFT + (WIDTH - LEFT - 8) * (tokens / most),
      y = (loss) => 8 + (HEIGHT - BOTTOM - 8) * (1 - Math.max(0, Math.min(1, (loss - low) / (high - low))));
    const words = `Losses over ${most.toLocaleString("en")} tokens: ${series.map(({ name, points }) => `${name} ${points.at(-1)[1].toFixed(3)} at last`).join(", ")}`;
    const ticks = [0, 0.5, 1].map((share) => low + share * (high - low));
    return element(
      "figure",
      {},
      shape(
        "svg",
        { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words },
        ...ticks.flatMap((tick) => [
          shape("line", { class: "axis", x1: LEFT, x2: WIDTH - 8, y1: y(tick), y2: y(tick) }),
          shape("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(2)),
        ]),
        shape("text", { x: WIDTH - 8, y: HEIGHT - 12, "text-anchor": "end" }, `${most.toLocaleString("en")} tokens`),
        ...series.map(({ points, style }) =>
          shape("path", {
            class: style,
            d: points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(""),
          }),
        ),
        ...series.map(({ name, style, points }, i) =>
          shape(
            "text",
            { x: LEFT + 8 + 110 * i, y: HEIGHT - 12, class: style },
            `${name} ${points.at(-1)[1].toFixed(3)}`,
          ),
        ),
      ),
      element(
        "figcaption",
        { class: "soft" },
        "Nats per token: ",
        element("span", { class: "is-seen" }, "training"),
        ", ",
        element("span", { class: "is-copied" }, "validation"),
      ),
    );
  }

  // -- two on the same prompt ------------------------------------------------------------------------------------------

  #beside() {
    const models = this.models(),
      choose = (label, i) =>
        element(
          "select",
          { "aria-label": label },
          ...models.map(({ name }, n) => element("option", { selected: n === Math.min(i, models.length - 1) }, name)),
        );
    const prompt = element("input", { "aria-label": "Prompt", value: "Once upon a time", dir: "auto" }),
      selects = [choose("First model", 0), choose("Second model", 1)];
    const columns = element("div", { class: "columns" });
    const write = (event) => {
      event.preventDefault();
      columns.replaceChildren(...selects.map((select) => this.#column(models[select.selectedIndex], prompt.value)));
    };
    return element(
      "section",
      {},
      element("h2", {}, "Two on the same prompt"),
      element(
        "form",
        { class: "line", onsubmit: write },
        prompt,
        ...selects,
        element("button", { class: "main" }, "Write"),
      ),
      columns,
    );
  }

  #column(model, prompt) {
    const words = element("p", { class: "words", dir: "auto" }, prompt),
      told = element("p", { class: "soft number" }, "");
    const { source, settings } = this.session;
    let nats = 0,
      count = 0;
    const write = async () => {
      const { tokens } = await source.inspect({ model: model.id, text: prompt, truth: false });
      await source.write(
        { model: model.id, tokens: tokens.map(({ id }) => id), ...settings, n: 1 },
        ({ text, log_probability }) => {
          words.append(text);
          nats -= log_probability;
          told.textContent = `${(nats / Math.LN2 / ++count).toFixed(2)} bits a token over ${count}`;
        },
      );
    };
    write().catch((error) => {
      told.textContent = error.message;
    });
    return element("div", { class: "card" }, element("h3", {}, model.name), words, told);
  }
}

const number = (text) => ({ text });

function row(tag, ...cells) {
  return element(
    "tr",
    {},
    ...cells.map((cell) =>
      cell?.text === undefined || cell.nodeType ? element(tag, {}, cell) : element(tag, { class: "number" }, cell.text),
    ),
  );
}

// Runs: how each was trained, its losses and samples, live while it trains; and two models on the same prompt.

import { curve } from "./curve.js";
import { element, find } from "./dom.js";

const EVERY = 2000; // milliseconds between looks at a run in training

const BEGINS = "The training has begun; its first losses come soon",
  UNKNOWN = "This model came without a record of its training";

export class Runs {
  #chosen = null;
  #timer = 0;
  #metrics = [];
  #trains = false; // whether one of the runs did at the last look

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
    this.#trains = runs.some(({ training }) => training);
    const focused = this.list.contains(document.activeElement);
    this.list.replaceChildren(
      element("h2", {}, "Runs"),
      element(
        "table",
        { class: "runs" },
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
    if (focused) this.list.querySelector("[aria-pressed=true]").focus();
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
      if (!this.#trains) return;
      const runs = await this.session.source.runs();
      this.#list(runs);
      if ((this.#trains || run.training) && !this.box.hidden && this.#chosen === id)
        this.#timer = setTimeout(() => this.#show(id), EVERY);
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
    const open = this.details.querySelector("details")?.open ?? matchMedia("(min-width: 60rem)").matches,
      plot = curve(this.#metrics);
    this.details.replaceChildren(
      element("h2", { class: training && "live" }, name),
      element("p", { class: "soft number" }, told.filter(Boolean).join(" · ") || (training ? BEGINS : UNKNOWN)),
      element(
        "div",
        { class: "columns" },
        element(
          "div",
          {},
          plot ?? "",
          element(
            "details",
            { open, class: "config" },
            element("summary", {}, "Config and parameters"),
            element(
              "div",
              { class: "columns" },
              this.#table("Parameters", parameters),
              ...Object.entries(config).map(([section, fields]) => this.#table(section, fields)),
            ),
          ),
        ),
        samples.length ? this.#samples(samples) : "",
      ),
    );
  }

  #samples(samples) {
    return element(
      "div",
      {},
      element("h3", {}, "Samples as they came, the latest first"),
      ...samples
        .slice(-6)
        .reverse()
        .map(({ step, text }) =>
          element(
            "div",
            { class: "card" },
            element("p", { class: "soft number" }, `step ${step.toLocaleString("en")}`),
            element("p", { class: "words", dir: "auto" }, /[.!?…]["”’]?$/u.test(text) ? text : `${text} …`),
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
      models.length > 1
        ? ""
        : element("p", { class: "soft" }, "Only one model is served; rhapsode serve RUN1 RUN2 shows two beside each other."),
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

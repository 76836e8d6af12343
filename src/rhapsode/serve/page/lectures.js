// The textbook's chapters as figures that are walked through step by step, with its numbers, the reader's or the model's.

import { announce, element, find } from "./dom.js";
import { CHAPTERS } from "./chapters.js";
import { parseMatrix } from "./mathematics.js";

export class Lectures {
  #chapter = null;
  #step = 0;
  #values = {};

  constructor(session) {
    this.session = session;
    this.box = find("view-lectures");
    this.box.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move || event.target.matches("input, select, textarea")) return;
      event.preventDefault(); // or the figure would scroll
      this.#go(this.#step + move);
    });
  }

  open(id) {
    const chapter = CHAPTERS.find((each) => each.id === id) ?? this.#chapter ?? CHAPTERS[0];
    if (chapter !== this.#chapter) {
      this.#chapter = chapter;
      this.#step = 0;
      this.#values = Object.fromEntries(chapter.inputs.map(({ name, value }) => [name, value]));
    }
    this.#frame();
  }

  #frame() {
    const { id, title, text, inputs, fromModel } = this.#chapter;
    this.problem = element("p", { class: "is-copied", role: "alert" });
    this.figure = element("div", {
      class: "figure",
      tabindex: 0,
      role: "group",
      "aria-label": `${title}: ← and → step through it`,
    });
    this.slider = element("input", {
      type: "range",
      min: 0,
      "aria-label": "Step",
      oninput: () => this.#go(Number(this.slider.value)),
    });
    this.place = element("span", { class: "soft number" });
    const button = (label, move) =>
      element("button", { type: "button", onclick: () => this.#go(this.#step + move) }, label);
    this.box.replaceChildren(
      element(
        "nav",
        { "aria-label": "Lectures" },
        element(
          "ul",
          { class: "line" },
          ...CHAPTERS.map((each) =>
            element(
              "li",
              {},
              element("a", { href: `#lectures/${each.id}`, "aria-current": each.id === id && "page" }, each.title),
            ),
          ),
        ),
      ),
      element("h2", {}, title),
      element("p", {}, text),
      element(
        "div",
        { class: "line" },
        button("Back", -1),
        button("Next", 1),
        element("span", { class: "steps" }, this.slider),
        this.place,
        element("span", { class: "hint" }, "← and → step, too"),
      ),
      ...inputs.filter(({ range }) => range).map((input) => this.#field(input)),
      this.figure,
      this.problem,
      element(
        "details",
        {},
        element("summary", {}, "Your own numbers"),
        element("p", { class: "hint" }, "Blanks part numbers, / parts rows."),
        ...inputs.filter(({ range }) => !range).map((input) => this.#field(input)),
      ),
      ...(fromModel
        ? [
            element(
              "p",
              {},
              element("button", { type: "button", onclick: () => this.#take(fromModel) }, "Take the model's numbers"),
              element("span", { class: "soft" }, " as they are where the cursor stands in the story"),
            ),
          ]
        : []),
    );
    this.#draw();
  }

  #field({ name, label, value, choices, range }) {
    const id = `own-${name}`,
      set = (text) => {
        this.#values[name] = text;
        this.#draw();
      };
    if (choices)
      return element(
        "div",
        { class: "dial" },
        element("label", { for: id }, label),
        element(
          "select",
          { id, onchange: ({ target }) => set(target.value) },
          ...choices.map((choice) => element("option", { selected: choice === this.#values[name] }, choice)),
        ),
      );
    if (range)
      return element(
        "div",
        { class: "dial" },
        element("label", { for: id }, label),
        element("input", {
          id,
          type: "range",
          ...range,
          value: this.#values[name],
          oninput: ({ target }) => set(target.value),
        }),
        element("output", {}, value),
      );
    return element(
      "div",
      { class: "dial" },
      element("label", { for: id }, label),
      element("input", {
        id,
        value: this.#values[name],
        spellcheck: "false",
        oninput: ({ target }) => set(target.value),
      }),
    );
  }

  async #take(fromModel) {
    try {
      this.#values = { ...this.#values, ...(await fromModel(this.session)) };
      this.#step = 0;
      this.#frame();
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }

  #go(step) {
    this.#step = step;
    this.#draw();
    announce(this.figure.querySelector(".formula")?.textContent ?? "");
  }

  #draw() {
    const { inputs, compute, draw } = this.#chapter;
    try {
      const given = Object.fromEntries(
        inputs.map(({ name, label, kind }) => [name, read(this.#values[name], label, kind)]),
      );
      const result = compute(given),
        count = result.count;
      this.#step = Math.max(0, Math.min(this.#step, count - 1));
      this.slider.max = count - 1;
      this.slider.value = this.#step;
      this.place.textContent = `${this.#step + 1} of ${count}`;
      this.figure.replaceChildren(...draw(given, result, this.#step).flat());
      this.problem.textContent = "";
    } catch (error) {
      this.problem.textContent = error.message;
    }
    for (const output of this.box.querySelectorAll("output")) output.textContent = output.previousSibling.value;
  }
}

// What a field holds, as its kind says: a matrix, a vector, words, a number or one of several words.
function read(text, label, kind = "matrix") {
  if (kind === "choice") return text;
  if (kind === "words") return text.split(/\s+/).filter(Boolean);
  const matrix = parseMatrix(String(text), label);
  if (kind === "matrix") return matrix;
  if (matrix.length > 1) throw new Error(`${label}: one row of numbers is needed`);
  return kind === "vector" ? matrix[0] : matrix[0][0];
}

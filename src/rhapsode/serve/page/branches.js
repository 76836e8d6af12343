// The tree of branches, to be walked, renamed and pruned; and samples side by side.

import { element, find } from "./dom.js";

const MOST_LETTERS = 60;

export class Branches {
  #renaming = null;

  constructor(session) {
    this.session = session;
    for (const type of ["path", "busy"]) session.addEventListener(type, () => this.render());
    session.addEventListener("token", ({ detail }) => this.#card(detail.branch)?.append(detail.token.text));
  }

  render() {
    const { tree } = this.session;
    const undo = () => element("button", { type: "button", onclick: () => this.session.unprune() }, "Undo");
    find("branches").replaceChildren(
      this.#list(tree.children(null)),
      this.session.pruned ? element("p", { class: "soft" }, "A branch was pruned. ", undo()) : "",
    );
    this.#samples();
  }

  #list(branches) {
    return element("ul", {}, ...branches.map((branch) => this.#item(branch)));
  }

  #item(branch) {
    const { session } = this,
      { tree } = session,
      { id } = branch,
      children = tree.children(id);
    const words = beginning(branch.tokens.map(({ text }) => text).join("").trim());
    const name = branch.name || words,
      current = id === tree.current;
    const walk =
      this.#renaming === id
        ? element("input", {
            value: name,
            "aria-label": "New name",
            onkeydown: (event) => {
              if (!["Enter", "Escape"].includes(event.key)) return;
              event.preventDefault(); // or the button that gets the focus would be pressed
              this.#rename(branch, event.key === "Enter" ? event.target.value : branch.name);
            },
            onblur: ({ target }) => this.#rename(branch, target.value === words ? branch.name : target.value),
          })
        : element(
            "button",
            {
              type: "button",
              class: "walk",
              "data-id": id,
              dir: "auto",
              "aria-current": current && "true",
              title: words,
              onclick: () => session.walk(id),
            },
            name,
          );
    const action = (label, act) =>
      element("button", { type: "button", class: "plain", "aria-label": `${label}: ${name}`, onclick: act }, label);
    return element(
      "li",
      {},
      walk,
      action("Rename", () => this.#start(id)),
      action("Prune", () => session.prune(id)),
      children.length ? this.#list(children) : null,
    );
  }

  #start(id) {
    this.#renaming = id;
    this.render();
    const field = find("branches").querySelector("input");
    field.focus();
    field.select();
  }

  #rename(branch, name) {
    if (this.#renaming === null) return;
    this.#renaming = null;
    branch.name = name.trim().slice(0, 80);
    this.session.say("path");
    find("branches").querySelector(`[data-id="${branch.id}"]`)?.focus();
  }

  // -- samples -------------------------------------------------------------------------------------------------------

  #samples() {
    const { session } = this,
      { samples = [], tree } = session;
    find("samples").hidden = samples.length === 0;
    find("samples").replaceChildren(
      ...samples
        .filter((id) => tree.branches.has(id))
        .map((id, i) => {
          const { tokens } = tree.branches.get(id),
            bits = tokens.reduce((sum, token) => sum + token.bits, 0) / Math.max(1, tokens.length);
          const take = element(
            "button",
            { type: "button", disabled: session.busy, onclick: () => session.walk(id) },
            "Take this one",
          );
          return element(
            "div",
            { class: "card", role: "group", "aria-label": `Sample ${i + 1}`, "aria-current": id === tree.current && "true" },
            element(
              "p",
              { class: tokens.at(-1)?.ends ? "words end" : "words", dir: "auto", "data-branch": id },
              tokens.map(({ text }) => text).join(""),
            ),
            element(
              "div",
              { class: "line" },
              take,
              element("span", { class: "soft number" }, session.busy ? "" : `${bits.toFixed(2)} bits a token`),
            ),
          );
        }),
    );
  }

  #card(id) {
    return find("samples").querySelector(`[data-branch="${id}"]`);
  }
}

// The first words of a branch, by which it is called until it has a name.
function beginning(text) {
  if (text.length <= MOST_LETTERS) return text || "…";
  return `${text.slice(0, MOST_LETTERS).replace(/\s+\S*$/, "")} …`;
}

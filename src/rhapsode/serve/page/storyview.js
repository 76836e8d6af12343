// The story as it stands on the page: coloured token by token, a cursor that keys and the mouse move, and lines from the
// token in view to those that it was made from.

import { announce, bitsOf, element, find, shape } from "./dom.js";
import { shownTexts } from "./tree.js";

const MOST_BITS = 10; // as much colour as there is
const TAIL = 12; // tokens whose letters a new one may still change
const LEAST_LINE = 0.03,
  MOST_LINES = 12;
const BENDS = {
  seen: { below: false, aside: 0 },
  copied: { below: true, aside: 0 },
  true: { below: false, aside: 4 }, // beside what was looked at, which is often the same
};
const COLOURS = {
  surprise: ["expected", `${MOST_BITS} bits of surprise`],
  excess: ["as it should be", `${MOST_BITS} bits more than the truth`],
};

export class StoryView {
  hovered = null;
  departed = null; // the token with which the text stops being a story of storyworld's
  #spans = [];
  #lines = [];
  #sentence = "";

  constructor(session) {
    this.session = session;
    this.box = find("story");
    session.addEventListener("path", () => this.render());
    session.addEventListener(
      "token",
      ({ detail }) => detail.branch === session.tree.current && this.#append(detail.token),
    );
    session.addEventListener("cursor", () => this.#mark());
    session.addEventListener("facts", () => this.#paint());
    session.addEventListener("busy", () => {
      if (!session.busy) this.#say(true);
      this.#mark();
    });
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener(
      "pointermove",
      ({ target, pointerType }) => pointerType === "mouse" && this.#hover(this.#place(target)),
    );
    this.box.addEventListener("pointerleave", () => this.#hover(null));
    this.box.addEventListener(
      "click",
      ({ target }) => this.#place(target) !== null && session.point(this.#place(target)),
    );
    find("colour").addEventListener("change", () => this.#paint());
    new ResizeObserver(() => this.draw(this.#lines)).observe(this.box);
    this.#legend();
  }

  // The token that is told of: under the mouse, or else at the cursor.
  get place() {
    return this.hovered ?? this.session.cursor;
  }

  render() {
    const { path } = this.session,
      shown = shownTexts(path);
    this.hovered = null;
    this.#spans = path.map((token, i) => this.#span(token, shown[i], i));
    this.box.replaceChildren(
      element("span", { class: "start", title: "the beginning" }, "◦"),
      ...this.#spans,
      this.#next(),
    );
    this.#paint();
    this.#mark();
  }

  #span(token, text, i) {
    const turn = !token.text.trim() && token.text.includes("\n");
    const classes = [i < this.session.given && "given", token.ends && "end", turn && "turn"].filter(Boolean).join(" ");
    return filled(element("span", { "data-i": i, class: classes }, element("i")), text);
  }

  #next() {
    return element("span", { class: "blank", "data-i": this.#spans.length }, element("i", {}, "\u200b"));
  }

  #append(token) {
    const { path } = this.session,
      begin = Math.max(0, path.length - TAIL),
      shown = shownTexts(path.slice(begin));
    const span = this.#span(token, "", path.length - 1);
    this.#spans.push(span);
    this.box.lastChild.before(span);
    this.box.lastChild.dataset.i = path.length;
    shown.forEach((text, i) => {
      if (i >= shown.length - 4 && this.#spans[begin + i].textContent !== text) filled(this.#spans[begin + i], text);
    });
    this.#heat(span, path.length - 1);
    this.session.cursor = this.session.end;
    this.#sentence += token.text;
    this.#say(false);
  }

  // Streamed text is read out by the sentence.
  #say(all) {
    const end = all ? this.#sentence.length : this.#sentence.search(/[.!?…。？！]["”’»]?\s/u) + 1;
    if (end <= 0) return;
    announce(this.#sentence.slice(0, end).trim());
    this.#sentence = this.#sentence.slice(end);
  }

  // -- colour --------------------------------------------------------------------------------------------------------

  #legend() {
    const { model, source } = this.session,
      select = find("colour");
    const choices = Object.keys(COLOURS).slice(0, model?.storyworld && source.serves ? 2 : 1);
    if (select.options.length !== choices.length)
      select.replaceChildren(...choices.map((name) => element("option", { value: name }, name)));
    select.parentElement.hidden = choices.length < 2;
    const [none, all] = COLOURS[select.value] ?? COLOURS.surprise;
    const { given, facts } = this.session;
    const line = (style, words) => element("span", { class: style }, element("i", {}, words));
    find("legend").replaceChildren(
      element("span", {}, none),
      element("span", { class: "scale" }),
      element("span", {}, all),
      given ? line("given", "yours") : "",
      facts?.references.length ? line("refers", "refers back") : "",
      this.departed === null ? "" : line("departs", "no story any more"),
    );
  }

  #paint() {
    this.#spans.forEach((span, i) => this.#heat(span, i));
    const { facts } = this.session;
    for (const { start, end } of facts?.references ?? [])
      this.#within(start, end).forEach((span) => span.classList.add("refers"));
    const departed = facts?.departure ? facts.truth_log_probabilities.indexOf(null) : -1;
    this.departed = departed < 0 ? null : departed;
    this.#spans[departed]?.classList.add("departs");
    this.#legend();
  }

  #heat(span, i) {
    const { path, facts } = this.session,
      truth = facts?.truth_log_probabilities?.[i];
    const bits =
      find("colour").value === "excess"
        ? truth === null || truth === undefined
          ? 0
          : path[i].bits - bitsOf(truth)
        : path[i].bits;
    span.style.setProperty("--heat", Math.max(0, Math.min(1, bits / MOST_BITS)).toFixed(3));
  }

  // The tokens that stand for characters start to end of the text.
  #within(start, end) {
    let place = 0;
    return this.#spans.filter((_, i) => {
      const begin = place;
      place += this.session.path[i]?.text.length ?? 0;
      return place > start && begin < end;
    });
  }

  // The reference that a token is part of, with the places of what it refers to; null where it is none.
  reference(i) {
    const span = this.#spans[i];
    for (const reference of this.session.facts?.references ?? []) {
      if (!this.#within(reference.start, reference.end).includes(span)) continue;
      return { ...reference, places: this.#within(...reference.antecedent).map(({ dataset }) => Number(dataset.i)) };
    }
    return null;
  }

  // -- the cursor ----------------------------------------------------------------------------------------------------

  #place(target) {
    const span = target.closest("[data-i]");
    return span && Number(span.dataset.i);
  }

  #hover(place) {
    if (place === this.hovered || this.session.busy) return;
    this.hovered = place;
    this.#mark();
    this.session.say("looking");
  }

  #mark() {
    for (const span of this.box.querySelectorAll(".here")) span.classList.remove("here");
    (this.#spans[this.place] ?? this.box.lastChild)?.classList.add("here");
    this.draw([]);
  }

  #key(event) {
    const { session } = this,
      rightToLeft = getComputedStyle(this.box).direction === "rtl" ? -1 : 1;
    const moves = {
      ArrowRight: rightToLeft,
      ArrowLeft: -rightToLeft,
      ArrowDown: this.#line(1),
      ArrowUp: this.#line(-1),
      Home: -Infinity,
      End: Infinity,
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) session.point(Math.min(session.cursor + moves[event.key], session.path.length));
    else if (/^[1-5]$/.test(event.key)) session.say("chosen", Number(event.key) - 1);
    else if (event.key === "e") find("edit").click();
    else return;
    this.hovered = null;
    event.preventDefault();
  }

  // How many tokens further the nearest one in the next line up or down is.
  #line(direction) {
    const { cursor } = this.session,
      here = (this.#spans[cursor] ?? this.box.lastChild).getBoundingClientRect();
    let best = 0,
      least = Infinity;
    this.#spans.forEach((span, i) => {
      const there = span.getBoundingClientRect(),
        lines = ((there.top - here.top) * direction) / Math.max(1, here.height);
      const distance = lines * 2000 + Math.abs(there.left - here.left);
      if (lines > 0.4 && distance < least) [best, least] = [i - cursor, distance];
    });
    return best;
  }

  // -- lines ---------------------------------------------------------------------------------------------------------

  // lines: [{place (-1 for the beginning), weight, kind: seen | copied | true}], from the token in view. What was looked
  // at bends above the text, what was copied below it, so that both show where they go to the same place.
  draw(lines) {
    this.#lines = lines;
    const frame = this.box.getBoundingClientRect(),
      target = this.#spans[this.place] ?? this.box.lastChild;
    for (const span of this.#spans) span.classList.remove("seen", "copied");
    const end = (node, { below, aside }) => {
      const box = (node.querySelector("i") ?? node).getClientRects()[0] ?? node.getBoundingClientRect();
      return [box.left + box.width / 2 - frame.left + aside, (below ? box.bottom - 3 : box.top + 3) - frame.top];
    };
    const paths = lines
      .filter(({ weight }) => weight >= LEAST_LINE)
      .sort((a, b) => b.weight - a.weight)
      .slice(0, MOST_LINES)
      .map(({ place, weight, kind }) => {
        const source = place < 0 ? this.box.firstChild : this.#spans[place];
        if (place >= 0) source.classList.add(kind);
        const { below, aside } = BENDS[kind],
          [x1, y1] = end(target, BENDS[kind]),
          [x2, y2] = end(source, BENDS[kind]),
          bend = 14 + 3 * aside + Math.min(50, Math.abs(x1 - x2) / 8),
          y = below ? Math.max(y1, y2) + bend : Math.min(y1, y2) - bend;
        return shape("path", {
          class: kind,
          d: `M${x1},${y1} C${x1},${y} ${x2},${y} ${x2},${y2}`,
          "stroke-width": kind === "true" ? 2 : 1 + 4.5 * weight,
          "stroke-opacity": kind === "true" ? 1 : 0.35 + 0.5 * weight,
        });
      });
    find("lines").replaceChildren(...paths);
  }
}

// A token's letters are in its own element, which takes the colour; the blanks before them are not.
function filled(span, text) {
  const blanks = text.trim() ? /^\s*/.exec(text)[0] : "";
  span.lastChild.textContent = text.slice(blanks.length);
  span.replaceChildren(blanks, span.lastChild);
  return span;
}

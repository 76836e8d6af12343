// What the lectures' figures are drawn with.

import { element, shape } from "./dom.js";
import { number } from "./mathematics.js";

// A matrix as a table; `on` (i, j) frames an entry, `there` (i, j) leaves the others blank, `heat` (value) colours it.
export function grid(name, matrix, on = () => false, { there = () => true, heat = () => 0, small = false } = {}) {
  return element(
    "table",
    { class: small ? "grid small" : "grid" },
    element("caption", {}, name),
    element(
      "tbody",
      {},
      ...matrix.map((line, i) =>
        element(
          "tr",
          {},
          ...line.map((value, j) =>
            element(
              "td",
              {
                class: [on(i, j) && "on", !there(i, j) && "none"].filter(Boolean).join(" "),
                "--heat": there(i, j) ? heat(value) : 0,
              },
              there(i, j) ? number(value) : "·",
            ),
          ),
        ),
      ),
    ),
  );
}

export const formula = (...lines) => element("p", { class: "formula" }, lines.join("\n"));
export const beside = (...nodes) => element("div", { class: "beside" }, ...nodes);

// A bar for each value, a share of one.
export function columns(names, values) {
  return element(
    "ul",
    { class: "bars" },
    ...names.map((name, i) =>
      element(
        "li",
        {},
        element(
          "div",
          { class: "row" },
          element("span", { class: "piece" }, name),
          element("span", {}, element("span", { class: "bar", "--share": values[i] })),
          element("span", { class: "number" }, number(values[i])),
        ),
      ),
    ),
  );
}

export const factor = (v) => (v < 0 ? `(${number(v)})` : number(v));

// The graph of T steps: circles for x, h, o and L, arrows forward; red ones back as far as the gradient has come.
export function graph(T, t, forward) {
  const place = (s) => 70 + 130 * s,
    level = { x: 200, h: 145, o: 90, L: 35 };
  const arrow = (x1, y1, x2, y2, on) => {
    const length = Math.hypot(x2 - x1, y2 - y1),
      [dx, dy] = [(5 * (x2 - x1)) / length, (5 * (y2 - y1)) / length];
    const tip = (side) => `${x2 - dx - (side * dy) / 1.6},${y2 - dy + (side * dx) / 1.6}`;
    return shape("path", {
      class: on ? "copied" : "plain",
      d: `M${x1},${y1} L${x2},${y2} M${tip(1)} L${x2},${y2} L${tip(-1)}`,
    });
  };
  const parts = [];
  for (let s = 0; s < T; s++) {
    const x = place(s),
      there = !forward || s <= t,
      back = !forward && s >= t;
    for (const [a, b] of [
      ["x", "h"],
      ["h", "o"],
      ["o", "L"],
    ])
      parts.push(arrow(x, level[a] - 16, x, level[b] + 16, false));
    if (s) parts.push(arrow(place(s - 1) + 16, level.h, x - 16, level.h, false));
    if (back)
      parts.push(
        arrow(x + 7, level.L + 16, x + 7, level.o - 16, true),
        arrow(x + 7, level.o + 16, x + 7, level.h - 16, true),
      );
    if (back && s + 1 < T) parts.push(arrow(place(s + 1) - 16, level.h + 8, x + 16, level.h + 8, true));
    for (const name of ["x", "h", "o", "L"])
      parts.push(
        shape("circle", {
          class: [there && "there", s === t && "on"].filter(Boolean).join(" "),
          cx: x,
          cy: level[name],
          r: 16,
        }),
        shape("text", { x, y: level[name] + 4, "text-anchor": "middle" }, `${name}${"₁₂₃₄₅₆₇₈₉"[s] ?? s + 1}`),
      );
  }
  const words = forward
    ? `${T} steps; values have come to step ${t + 1}`
    : `${T} steps; gradients have come back to step ${t + 1}`;
  return shape(
    "svg",
    { class: "plot graph", viewBox: `0 0 ${130 * T + 10} 230`, role: "img", "aria-label": words },
    ...parts,
  );
}

// Lengths on a logarithmic axis, 10^-8 to 10^8, so that vanishing and exploding look alike.
export function logCurve(lengths) {
  const x = (n) => 40 + 500 * (n / (lengths.length - 1)),
    y = (v) => 80 - 9 * Math.max(-8, Math.min(8, Math.log10(Math.max(v, 1e-9))));
  return shape(
    "svg",
    {
      class: "plot",
      viewBox: "0 0 560 196",
      role: "img",
      "aria-label": `From 1 to ${number(lengths.at(-1))} in ${lengths.length - 1} steps back`,
    },
    ...[0, 10, 20]
      .filter((n) => n < lengths.length - 4)
      .concat(lengths.length - 1)
      .map((n) => shape("text", { x: x(n), y: 170, "text-anchor": "middle" }, n)),
    shape("text", { x: 540, y: 188, "text-anchor": "end" }, "steps back"),
    ...[-8, 0, 8].flatMap((power) => [
      shape("line", { class: "axis", x1: 40, x2: 540, y1: y(10 ** power), y2: y(10 ** power) }),
      shape("text", { x: 34, y: y(10 ** power) + 4, "text-anchor": "end" }, power ? `1e${power}` : "1"),
    ]),
    shape("path", {
      class: "two",
      d: lengths.map((v, n) => `${n ? "L" : "M"}${x(n).toFixed(1)},${y(v).toFixed(1)}`).join(""),
    }),
  );
}

// The losses of a run over the tokens that it was trained on.

import { element, shape } from "./dom.js";

const WIDTH = 560,
  HEIGHT = 280,
  LEFT = 40,
  RIGHT = 108, // for the names at the ends of the lines
  TOP = 24,
  BOTTOM = 36;
const LINES = [
  ["train_loss", "training", "one"],
  ["valid_loss", "validation", "two"],
];
const STEEP = 0.03; // of the losses, the highest: what comes before the curve is flat enough to be read

// metrics: the lines of metrics.jsonl. Null where there is no loss among them.
export function curve(metrics) {
  const series = LINES.map(([field, name, style]) => ({
    name,
    style,
    points: metrics
      .filter((line) => Number.isFinite(line[field]) && (field !== "train_loss" || line.event === "train"))
      .map((line) => [line.tokens, line[field]]),
  })).filter(({ points }) => points.length);
  if (!series.length) return null;
  const all = series.flatMap(({ points }) => points),
    losses = all.map(([, loss]) => loss).sort((a, b) => a - b);
  const most = Math.max(1, ...all.map(([tokens]) => tokens)),
    top = Math.max(losses[0] + 0.1, losses[Math.floor((losses.length - 1) * (1 - STEEP))]);
  const levels = roundNumbers(losses[0], top, 4),
    low = levels[0],
    high = Math.max(top, levels.at(-1));
  const x = (tokens) => ((WIDTH - LEFT - RIGHT) * tokens) / most,
    y = (loss) => (HEIGHT - TOP - BOTTOM) * (1 - (loss - low) / (high - low));
  const line = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
  const text = (content, properties) => shape("text", properties, content);
  const compact = new Intl.NumberFormat("en", { notation: "compact" });
  return element(
    "figure",
    {},
    shape(
      "svg",
      {
        class: "plot",
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "img",
        "aria-label": `Losses over ${most.toLocaleString("en")} tokens: ${series.map(({ name, points }) => `${name} ${points.at(-1)[1].toFixed(3)} at last`).join(", ")}`,
      },
      text("nats a token", { x: 0, y: 11 }),
      ...levels.flatMap((level) => [
        shape("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: TOP + y(level), y2: TOP + y(level) }),
        text(Number(level.toFixed(6)), { x: LEFT - 6, y: TOP + y(level) + 4, "text-anchor": "end" }),
      ]),
      ...roundNumbers(0, most, 4)
        .filter((tokens) => tokens <= most)
        .map((tokens) =>
          text(compact.format(tokens), { x: LEFT + x(tokens), y: HEIGHT - 18, "text-anchor": "middle" }),
        ),
      text("tokens", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }),
      shape(
        "svg", // what is above the highest level is cut off at its edge
        { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM + 2, overflow: "hidden" },
        ...series.map(({ points, style }) => shape("path", { class: style, d: line(points) })),
        ...series
          .filter(({ points }) => points.length === 1)
          .map(({ points: [[a, b]], style }) => shape("circle", { class: style, cx: x(a), cy: y(b), r: 3 })),
      ),
      ...series.map(({ name, style, points }) => {
        const loss = points.at(-1)[1],
          others = series.filter((each) => each.name !== name).map((each) => y(each.points.at(-1)[1])),
          place = y(loss) + 4,
          near = others.some((other) => Math.abs(other + 4 - place) < 14);
        const aside = near ? (place >= others[0] + 4 ? 8 : -8) : 0;
        return text(`${name} ${loss.toFixed(3)}`, {
          class: style,
          x: WIDTH - RIGHT + 8,
          y: TOP + Math.max(4, place) + aside,
        });
      }),
    ),
  );
}

// Round numbers, about so many steps, from the last one that is not above `from` to the first not below `to`.
export function roundNumbers(from, to, steps) {
  const rough = (to - from) / steps,
    power = 10 ** Math.floor(Math.log10(rough)),
    step = power * [1, 2, 2.5, 5, 10].find((times) => times * power >= rough * 0.999);
  const first = Math.floor(from / step + 1e-9),
    last = Math.ceil(to / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

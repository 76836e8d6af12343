// The hidden units as strips, a block each, and which of them a token changed most.

import { element } from "./dom.js";

const MOST_CHANGED = 3;

// before, after: the units of each block; after null where no token came yet.
export function memoryOf(before, after) {
  return [
    element(
      "h3",
      {},
      after ? "Its memory after this" : "Its memory",
      element("span", { class: "soft" }, " blue below zero, red above"),
    ),
    ...(after ?? before).flatMap((units, block) => [strip(units, block), changes(before[block], units)]),
  ];
}

function changes(before, after) {
  const change = after.map((v, j) => Math.abs(v - before[j]));
  const most = [...change.keys()]
    .filter((j) => change[j])
    .sort((a, b) => change[b] - change[a])
    .slice(0, MOST_CHANGED)
    .map((j) => `unit ${j + 1} (${before[j].toFixed(2)} → ${after[j].toFixed(2)})`);
  return element("p", { class: "soft number" }, most.length ? `Changed most: ${most.join(", ")}` : "");
}

function strip(units, block) {
  const label = `${units.length} units of block ${block + 1}`;
  const canvas = element("canvas", {
    class: "strip",
    width: units.length,
    height: 1,
    role: "img",
    "aria-label": label,
    title: label,
  });
  const largest = units.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9),
    context = canvas.getContext("2d"),
    image = context.createImageData(units.length, 1);
  units.forEach((v, j) => image.data.set([...(v < 0 ? BELOW : ABOVE), (255 * Math.abs(v)) / largest], 4 * j));
  context.putImageData(image, 0, 0);
  return canvas;
}

const BELOW = [42, 120, 180],
  ABOVE = [200, 70, 45]; // in both themes

// How the next token is chosen, as decode/filters.py says; the random numbers are others than PyTorch's.

import { softmax } from "./numbers.js";

// Numbers in [0, 1), 32 bits each; the same seed gives the same (sfc32, seeded by 12 rounds).
export function randomNumbers(seed) {
  let a = 0,
    b = seed | 0,
    c = Math.floor(seed / 2 ** 32) | 0,
    d = 1;
  const next = () => {
    const t = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + t) | 0;
    return (t >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

// The distribution that is drawn from, as decode/filters.py cuts it: probabilities by id, 0 for what is left out.
// seen: the ids that a repetition penalty is for.
export function distribution(
  logits,
  { temperature = 1, top_k = 0, top_p = 1, min_p = 0, repetition_penalty = 1 },
  seen = [],
) {
  const s = Float64Array.from(logits);
  if (repetition_penalty !== 1) {
    for (const id of new Set(seen)) s[id] = s[id] > 0 ? s[id] / repetition_penalty : s[id] * repetition_penalty;
  }
  let largest = -Infinity;
  for (const v of s) if (v > largest) largest = v;
  if (temperature === 0) {
    const best = s.indexOf(largest);
    return s.fill(0).fill(1, best, best + 1);
  }
  for (let i = 0; i < s.length; i++) s[i] = (s[i] - largest) / temperature;
  if (top_k > 0 && top_k < s.length) {
    const kth = s.slice().sort()[s.length - top_k];
    for (let i = 0; i < s.length; i++) if (s[i] < kth) s[i] = -Infinity;
  }
  if (top_p < 1) {
    const p = softmax(s.slice()),
      order = Array.from(p.keys()).sort((i, j) => p[j] - p[i] || i - j);
    let before = 0;
    for (const i of order) {
      if (before >= top_p) s[i] = -Infinity;
      before += p[i];
    }
  }
  if (min_p > 0) {
    const p = softmax(s.slice()),
      least = min_p * p.reduce((a, b) => Math.max(a, b));
    for (let i = 0; i < s.length; i++) if (p[i] < least) s[i] = -Infinity;
  }
  return softmax(s);
}

export function draw(probabilities, random) {
  let left = random(),
    last = 0;
  for (let i = 0; i < probabilities.length; i++) {
    if (probabilities[i] === 0) continue;
    last = i;
    if ((left -= probabilities[i]) < 0) return i;
  }
  return last;
}

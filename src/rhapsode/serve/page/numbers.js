// Exponential and logarithm made of additions, multiplications and divisions: every browser computes the same bits,
// which the language does not promise of Math.exp and Math.log.

const LN2_HIGH = 6.9314718036912381649e-1; // the two add up to ln 2
const LN2_LOW = 1.90821492927058770002e-10;
const PARTS = 32; // x = (32 n + j) ln 2 / 32 + r, so that exp(x) = 2^n 2^(j / 32) exp(r) with a small r
export const POWERS = new Float64Array(2098); // 2^(i - 1074)
POWERS[1074] = 1;
for (let n = 1; n < 1024; n++) POWERS[1074 + n] = 2 * POWERS[1073 + n];
for (let n = 1; n < 1075; n++) POWERS[1074 - n] = POWERS[1075 - n] / 2;
const ROOTS = Float64Array.from({ length: PARTS }, (_, j) => series((j / PARTS) * (LN2_HIGH + LN2_LOW), 18)); // 2^(j / 32)

// 1 + r (1 + r / 2 (1 + r / 3 ...)), the first terms of exp(r).
function series(r, terms) {
  let sum = 1;
  for (let k = terms; k > 0; k--) sum = 1 + (sum * r) / k;
  return sum;
}

export function exp(x) {
  if (x < -745) return 0;
  if (x > 709) return Infinity;
  const k = Math.floor((x * PARTS) / (LN2_HIGH + LN2_LOW) + 0.5);
  const r = x - (k / PARTS) * LN2_HIGH - (k / PARTS) * LN2_LOW;
  const e = 1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r / 720)))));
  return ROOTS[k & (PARTS - 1)] * e * POWERS[(k >> 5) + 1074];
}

const BITS = new DataView(new ArrayBuffer(8));

// Of a positive normal number m 2^n with m near 1: n ln 2 + 2 artanh((m - 1) / (m + 1)).
export function log(x) {
  if (x === 0) return -Infinity;
  BITS.setFloat64(0, x);
  const high = BITS.getInt32(0),
    up = (high & 0xfffff) > 0x6a09e ? 1 : 0,
    n = (high >> 20) - 1023 + up;
  BITS.setInt32(0, (high & 0xfffff) | ((1023 - up) << 20));
  const m = BITS.getFloat64(0),
    s = (m - 1) / (m + 1),
    square = s * s;
  let sum = 0;
  for (let k = 23; k > 0; k -= 2) sum = sum * square + 1 / k;
  return n * LN2_HIGH + (2 * s * sum + n * LN2_LOW);
}

export const sigmoid = (x) => 1 / (1 + exp(-x));
export const tanh = (x) => 1 - 2 / (1 + exp(2 * x));

// In place, over the first n entries.
export function softmax(scores, n = scores.length) {
  let largest = -Infinity,
    sum = 0;
  for (let i = 0; i < n; i++) if (scores[i] > largest) largest = scores[i];
  for (let i = 0; i < n; i++) sum += scores[i] = exp(scores[i] - largest);
  for (let i = 0; i < n; i++) scores[i] /= sum;
  return scores;
}

// log of the sum of exp.
export function logSum(logits) {
  let largest = -Infinity,
    sum = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i] > largest) largest = logits[i];
  for (let i = 0; i < logits.length; i++) sum += exp(logits[i] - largest);
  return largest + log(sum);
}

// Natural logarithms of the softmax of logits.
export function logSoftmax(logits) {
  const total = logSum(logits),
    found = new Float64Array(logits.length);
  for (let i = 0; i < logits.length; i++) found[i] = logits[i] - total;
  return found;
}

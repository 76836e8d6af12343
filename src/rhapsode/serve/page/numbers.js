// Exponential and logarithm made of additions, multiplications and divisions: every browser computes the same bits,
// which the language does not promise of Math.exp and Math.log.

const LN2_HIGH = 6.9314718036912381649e-1,
  LN2_LOW = 1.90821492927058770002e-10; // their sum is ln 2
const TERMS = []; // 1/13!, 1/12!, ..., 1/1!, 1/0!
for (let n = 0, factorial = 1; n < 14; factorial *= ++n) TERMS.unshift(1 / factorial);
export const POWERS = new Float64Array(2098); // 2^(i - 1074)
POWERS[1074] = 1;
for (let n = 1; n < 1024; n++) POWERS[1074 + n] = 2 * POWERS[1073 + n];
for (let n = 1; n < 1075; n++) POWERS[1074 - n] = POWERS[1075 - n] / 2;

export function exp(x) {
  if (x < -745) return 0;
  if (x > 709) return Infinity;
  const n = Math.floor(x / (LN2_HIGH + LN2_LOW) + 0.5);
  const r = x - n * LN2_HIGH - n * LN2_LOW;
  let sum = 0;
  for (let i = 0; i < TERMS.length; i++) sum = sum * r + TERMS[i];
  return sum * POWERS[n + 1074];
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

// Natural logarithms of the softmax of logits.
export function logSoftmax(logits) {
  let largest = -Infinity,
    sum = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i] > largest) largest = logits[i];
  for (let i = 0; i < logits.length; i++) sum += exp(logits[i] - largest);
  const total = largest + log(sum);
  return Float64Array.from(logits, (s) => s - total);
}

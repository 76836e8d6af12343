// The lectures' mathematics: what src/rhapsode/textbook/ says, for the figures. Matrices are arrays of rows.

export const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
export const times = (A, x) => A.map((row) => dot(row, x));
export const transpose = (A) => A[0].map((_, j) => A.map((row) => row[j]));
export const plus = (a, b) => a.map((v, i) => v + b[i]);
const scaled = (A, s) => A.map((row) => row.map((v) => v * s));
const zeros = (rows, columns) => Array.from({ length: rows }, () => new Array(columns).fill(0));
export const length = (a) => Math.sqrt(dot(a, a));

export function softmaxOf(s, temperature = 1) {
  const largest = Math.max(...s);
  if (temperature === 0) return s.map((_, i) => Number(i === s.indexOf(largest)));
  const e = s.map((v) => Math.exp((v - largest) / temperature)),
    sum = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / sum);
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// -- convolution: y, the matrix A with y = A x, and the gradients of the sum of y --------------------------------------

export function convolution({ x, f, stride, padding }) {
  const size = (n, k) => Math.floor((n + 2 * padding - k) / stride) + 1;
  const [n, w, k, l] = [x.length, x[0].length, f.length, f[0].length],
    m = size(n, k),
    v = size(w, l);
  if (m < 1 || v < 1) throw new Error("The filter is larger than the padded image");
  const A = zeros(m * v, n * w),
    df = zeros(k, l);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < v; j++)
      for (let a = 0; a < k; a++)
        for (let b = 0; b < l; b++) {
          const row = stride * i + a - padding,
            column = stride * j + b - padding;
          if (row < 0 || row >= n || column < 0 || column >= w) continue;
          A[i * v + j][row * w + column] = f[a][b];
          df[a][b] += x[row][column];
        }
  const flat = times(A, x.flat()),
    dx = times(
      transpose(A),
      flat.map(() => 1),
    );
  return { y: rows(flat, v), A, dx: rows(dx, w), df };
}

export const rows = (flat, width) =>
  Array.from({ length: flat.length / width }, (_, i) => flat.slice(i * width, (i + 1) * width));

// -- a recurrent network over its steps, forward and backward ----------------------------------------------------------

const PSI = { identity: (z) => z, relu: (z) => Math.max(z, 0), tanh: Math.tanh };
const PSI_PRIME = { identity: () => 1, relu: (z) => Number(z > 0), tanh: (z) => 1 - Math.tanh(z) ** 2 };

export function unrolled({ W_hh, W_hx, W_hy, x, y, activation }) {
  const T = x.length,
    H = W_hh.length,
    steps = [];
  let h = new Array(H).fill(0);
  for (let t = 0; t < T; t++) {
    const z = plus(times(W_hh, h), times(W_hx, x[t]));
    h = z.map(PSI[activation]);
    const o = times(W_hy, h),
      p = softmaxOf(o);
    steps.push({ z, h, o, p, loss: -Math.log(p[y[t]]) });
  }
  let back = new Array(H).fill(0);
  const d_hh = zeros(H, H);
  for (let t = T - 1; t >= 0; t--) {
    const step = steps[t],
      before = t ? steps[t - 1].h : new Array(H).fill(0);
    step.do = step.p.map((v, j) => v - Number(j === y[t]));
    step.dh = plus(times(transpose(W_hy), step.do), back);
    step.dz = step.dh.map((v, j) => v * PSI_PRIME[activation](step.z[j]));
    step.dz.forEach((v, i) =>
      before.forEach((u, j) => {
        d_hh[i][j] += v * u;
      }),
    );
    back = times(transpose(W_hh), step.dz);
  }
  return { steps, loss: steps.reduce((sum, { loss }) => sum + loss, 0), d_hh };
}

// The largest absolute eigenvalue: how fast the powers of a matrix grow.
export function spectralRadius(W) {
  let power = W,
    logarithm = 0;
  for (let n = 1; n <= 2 ** 20; n *= 2) {
    const size = Math.max(...power.flat().map(Math.abs));
    if (size === 0) return 0;
    power = scaled(power, 1 / size);
    logarithm += Math.log(size) / n;
    power = power.map((row) => transpose(power).map((column) => dot(row, column)));
  }
  return Math.exp(logarithm);
}

// How long a unit gradient still is after 0, 1, ... steps back through W, scaled to a largest eigenvalue.
export function gradientLengths(W, radius, count) {
  const found = spectralRadius(W),
    back = transpose(found ? scaled(W, radius / found) : W),
    lengths = [];
  for (let n = 0, g = new Array(W.length).fill(1 / Math.sqrt(W.length)); n < count; n++, g = times(back, g))
    lengths.push(length(g));
  return lengths;
}

// -- the tape: L = -log softmax(sigmoid(z) z)[y], z = W x + b; popped last-in first-out, and as a queue -----------------

export function tape({ W, x, b, y }, queue = false) {
  const linear = times(W, x),
    z = plus(linear, b),
    h = z.map(sigmoid),
    r = h.map((v, i) => v * z[i]),
    p = softmaxOf(r);
  const zero = () => new Array(b.length).fill(0),
    g = { linear: zero(), bias: zero(), sigmoid: zero(), multiply: zero(), loss: 1 };
  const found = { W: zeros(W.length, x.length), b: zero(), x: new Array(x.length).fill(0) };
  const add = (to, values) =>
    values.forEach((v, i) => {
      to[i] += v;
    });
  const backward = {
    loss: () =>
      add(
        g.multiply,
        p.map((v, i) => g.loss * (v - Number(i === y))),
      ),
    multiply: () => {
      add(
        g.sigmoid,
        g.multiply.map((v, i) => v * z[i]),
      );
      add(
        g.bias,
        g.multiply.map((v, i) => v * h[i]),
      );
    },
    sigmoid: () =>
      add(
        g.bias,
        g.sigmoid.map((v, i) => v * h[i] * (1 - h[i])),
      ),
    bias: () => {
      add(g.linear, g.bias);
      add(found.b, g.bias);
    },
    linear: () => {
      add(found.x, times(transpose(W), g.linear));
      g.linear.forEach((v, i) =>
        add(
          found.W[i],
          x.map((u) => v * u),
        ),
      );
    },
  };
  const output = { linear, bias: z, sigmoid: h, multiply: r, loss: [-Math.log(p[y])] },
    stack = [],
    moments = [];
  for (const name of Object.keys(output)) {
    stack.push(name);
    moments.push({ action: "push", name, value: output[name], stack: [...stack] });
  }
  while (stack.length) {
    const name = queue ? stack.shift() : stack.pop(),
      value = [g[name]].flat();
    backward[name]();
    moments.push({ action: "pop", name, value, stack: [...stack] });
  }
  return { moments, gradients: found };
}

// -- causal self-attention, head by head -------------------------------------------------------------------------------

export function attention({ X, heads }) {
  return heads.map(({ W_q, W_k, W_v }) => {
    const [Q, K, V] = [W_q, W_k, W_v].map((W) => X.map((x) => times(W, x)));
    const S = Q.map((q, t) => K.map((k, n) => (n <= t ? dot(q, k) / Math.sqrt(k.length) : -Infinity)));
    const A = S.map((row) => softmaxOf(row));
    return { Q, K, V, S, A, O: A.map((row) => times(transpose(V), row)) };
  });
}

// -- the copy head: p = (1 - g) softmax(z) + g c, c(w) the weights of the places where w stands -------------------------

export function copying({ names, z, scores, tokens, u }) {
  const A = softmaxOf(scores),
    g = sigmoid(u),
    own = softmaxOf(z);
  const c = names.map((_, id) => A.reduce((sum, weight, n) => sum + (tokens[n] === id ? weight : 0), 0));
  return { A, g, own, c, p: own.map((v, id) => (1 - g) * v + g * c[id]) };
}

// -- numbers as the textbook writes them, and as a reader types them ---------------------------------------------------

export function number(value) {
  for (let decimals = 0; decimals < 4; decimals++) {
    if (Math.abs(value - Number(value.toFixed(decimals))) < 1e-12)
      return (Number(value.toFixed(decimals)) + 0).toFixed(decimals);
  }
  if (Math.abs(value) >= 0.001) return value.toFixed(4);
  return value.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
}

export const vector = (values) => `(${values.map(number).join(", ")})`;

// "1 0 -2 / 2 9 5": rows of numbers. Fails with an Error that names what is wrong.
export function parseMatrix(text, name) {
  const parsed = text.split("/").map((line) =>
    line
      .trim()
      .split(/[\s,]+/)
      .filter(Boolean)
      .map(Number),
  );
  if (parsed.some((line) => line.length !== parsed[0].length || !line.length))
    throw new Error(`${name}: rows of equally many numbers are needed, such as 1 0 / 2 -1`);
  if (parsed.flat().some((v) => !Number.isFinite(v))) throw new Error(`${name}: only numbers, such as 1 0 / 2 -1`);
  return parsed;
}

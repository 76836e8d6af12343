// The lectures. Each chapter: what the reader may change (inputs), what is computed (compute gives `count` steps beside its
// numbers), and how a step is drawn. tests/page/test_lectures.py holds the numbers against the textbook.

import { element, percent } from "./dom.js";
import { beside, columns, factor, formula, graph, grid, logCurve } from "./figures.js";
import {
  attention,
  convolution,
  copying,
  gradientLengths,
  number,
  softmaxOf,
  spectralRadius,
  tape,
  unrolled,
  vector,
} from "./mathematics.js";

const LAPLACIAN = "-1 -1 -1 / -1 8 -1 / -1 -1 -1";
const IMAGE = "1 0 -2 3 4 1 / 2 9 5 6 0 -1 / 0 -3 1 3 4 4 / 6 5 2 0 6 8 / -5 4 -3 1 3 -2 / 4 1 2 8 9 7";
const STEPS_BACK = 30;

// Tokens' names as words of a field, which blanks part.
const words = (tokens) => tokens.map(({ piece }) => piece.replace(/\s+/g, "_")).join(" ");

export const CHAPTERS = [
  {
    id: "convolution",
    title: "Convolution",
    text: "The filter is laid on the image, position after position; what lies under it is multiplied entry by entry and added up. The map is linear, so a matrix A does the same: each of its rows is one position of the filter.",
    inputs: [
      { name: "x", label: "Image x", value: IMAGE },
      { name: "f", label: "Filter f", value: LAPLACIAN },
      { name: "stride", label: "Stride", value: "1", kind: "number" },
      { name: "padding", label: "Padding", value: "0", kind: "number" },
    ],
    compute(given) {
      const found = convolution(given);
      return { ...found, count: found.y.flat().length };
    },
    draw({ x, f, stride, padding }, { y, A, dx, df }, step) {
      const i = Math.floor(step / y[0].length),
        j = step % y[0].length,
        top = stride * i - padding,
        left = stride * j - padding;
      const under = (a, b) => a >= top && a < top + f.length && b >= left && b < left + f[0].length;
      const products = f
        .flatMap((line, a) => line.map((v, b) => [v, x[top + a]?.[left + b] ?? 0]))
        .map(([v, u]) => `${factor(v)}·${factor(u)}`);
      return [
        formula(`y[${i + 1},${j + 1}] = ${products.join(" + ")} = ${number(y[i][j])}`),
        beside(
          grid("image x", x, under),
          grid("filter f", f),
          grid("output y", y, (a, b) => a === i && b === j, { there: (a, b) => a * y[0].length + b <= step }),
        ),
        grid(
          "A, with y = A x: this position's row is framed, its zeros are dots",
          A,
          (a, b) => a === step && A[a][b] !== 0,
          { there: (a, b) => A[a][b] !== 0, small: true },
        ),
        beside(grid("dL/dx = Aᵀ dy, for L the sum of y", dx), grid("dL/df", df)),
      ];
    },
  },
  {
    id: "unrolled",
    title: "The unrolled graph",
    text: "The loop of the network is cut open: a copy for each step, all with the same three matrices. Values go forward; then gradients come back, and in each h two meet: from its own output, and from the step after it.",
    inputs: [
      { name: "x", label: "Inputs x", value: "1 / -0.5 / 2" },
      { name: "y", label: "Targets y", value: "0 1 0", kind: "vector" },
      { name: "W_hh", label: "W_hh", value: "0.5 -0.25 / 0.25 0.5" },
      { name: "W_hx", label: "W_hx", value: "1 / 0.5" },
      { name: "W_hy", label: "W_hy", value: "1 0 / 0 1" },
      { name: "activation", label: "ψ", value: "relu", kind: "choice", choices: ["identity", "relu", "tanh"] },
      {
        name: "radius",
        label: "Largest eigenvalue",
        value: "0.8",
        kind: "number",
        range: { min: 0.3, max: 1.5, step: 0.05 },
      },
    ],
    compute(given) {
      const { W_hh, W_hx, W_hy, x, y } = given,
        H = W_hh.length;
      if (
        W_hh.some((row) => row.length !== H) ||
        W_hx.length !== H ||
        W_hx[0].length !== x[0].length ||
        W_hy[0].length !== H
      )
        throw new Error(
          "The matrices do not fit together: W_hh is square, W_hx has as many rows, W_hy as many columns",
        );
      if (y.length !== x.length || y.some((id) => !(id in W_hy)))
        throw new Error("One target is needed for each input, each the number of a row of W_hy, from 0");
      return {
        ...unrolled(given),
        lengths: gradientLengths(W_hh, given.radius, STEPS_BACK),
        found: spectralRadius(W_hh),
        count: 2 * x.length,
      };
    },
    draw({ x, y, radius }, { steps, loss, d_hh, lengths, found }, step) {
      const T = steps.length,
        forward = step < T,
        t = forward ? step : 2 * T - 1 - step,
        { z, h, o, p, loss: own, do: d_o, dh, dz } = steps[t];
      const told = forward
        ? [
            `step ${t + 1}: z = W_hh h + W_hx x = ${vector(z)}, h = ψ(z) = ${vector(h)}`,
            `o = W_hy h = ${vector(o)}, ŷ = softmax(o) = ${vector(p)}, L = -log ŷ[${y[t]}] = ${number(own)}`,
          ]
        : [
            `step ${t + 1}: dL/do = ŷ - onehot(${y[t]}) = ${vector(d_o)}`,
            `dL/dh = W_hyᵀ dL/do${t + 1 < T ? " + W_hhᵀ dL/dz of the next" : ""} = ${vector(dh)}, dL/dz = ψ'(z) ∘ dL/dh = ${vector(dz)}`,
          ];
      const list = (name, cell, there) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, name),
          ...steps.map((each, s) => element("td", { class: s === t && "on" }, there(s) ? cell(each, s) : "")),
        );
      const reached = (s) => !forward || s <= t,
        back = (s) => !forward && s >= t;
      return [
        formula(...told),
        beside(
          graph(steps.length, t, forward),
          element(
            "table",
            { class: "values" },
            element(
              "tbody",
              {},
              list(
                "x",
                (_, s) => vector(x[s]),
                () => true,
              ),
              list("h", (each) => vector(each.h), reached),
              list("ŷ", (each) => vector(each.p), reached),
              list("L", (each) => number(each.loss), reached),
              list("dL/do", (each) => vector(each.do), back),
              list("dL/dh", (each) => vector(each.dh), back),
              list("dL/dz", (each) => vector(each.dz), back),
            ),
          ),
        ),
        forward || t
          ? formula(reached(T - 1) ? `L = ${number(loss)}` : "")
          : beside(formula(`L = ${number(loss)}`), grid("dL/dW_hh, from all steps", d_hh)),
        element("h3", {}, "Does a gradient vanish or explode?"),
        element(
          "p",
          { class: "soft" },
          `W_hh's own largest eigenvalue is ${number(found)}. Scaled to ${number(radius)}, a gradient of length 1 has the length ${number(lengths.at(-1))} after ${lengths.length - 1} steps back (ψ the identity).`,
        ),
        logCurve(lengths),
      ];
    },
  },
  {
    id: "tape",
    title: "The tape",
    text: "Automatic differentiation keeps what it computed on a tape, and goes back by popping the last first: by then all uses of a module have given it their gradient. z is used twice here. A queue, first in first out, pops linear while its gradient is still zero: all that comes out is wrong.",
    inputs: [
      { name: "x", label: "x", value: "1 2", kind: "vector" },
      { name: "W", label: "W", value: "1 -1 / 0.5 0 / 0 1" },
      { name: "b", label: "b", value: "0.5 0 -1", kind: "vector" },
      { name: "y", label: "Target y", value: "0", kind: "number" },
    ],
    compute(given) {
      if (given.W[0].length !== given.x.length || given.W.length !== given.b.length || !(given.y in given.b))
        throw new Error(
          "W needs a column for each entry of x and a row for each of b; the target is the number of a row, from 0",
        );
      return { right: tape(given), wrong: tape(given, true), count: 2 * 5 };
    },
    draw(_, { right, wrong }, step) {
      const side = (title, { moments, gradients }) => {
        const { action, name, value, stack } = moments[step];
        return element(
          "div",
          {},
          element("h3", {}, title),
          element(
            "div",
            { class: "stack" },
            ...stack.map((each) => element("span", { class: each === name && "on" }, each)),
          ),
          formula(action === "push" ? `push ${name}: ${vector(value)}` : `pop ${name}, its gradient ${vector(value)}`),
          ...(step === 9
            ? [
                grid(`dL/dW by the ${title.toLowerCase()}`, gradients.W),
                formula(`dL/db = ${vector(gradients.b)}`, `dL/dx = ${vector(gradients.x)}`),
              ]
            : []),
        );
      };
      return [
        formula("L = -log softmax(h ∘ z)[y],  h = sigmoid(z),  z = W x + b"),
        beside(side("Stack", right), side("Queue", wrong)),
      ];
    },
  },
  {
    id: "attention",
    title: "Attention",
    text: "Each position asks (q), is found by a key (k) and gives a value (v). The scores of a query with the keys it may see become weights by a softmax, and the weights average the values. Head by head, position by position.",
    inputs: [
      { name: "X", label: "Inputs X", value: "1 0 / 0 1 / 1 1" },
      ...[
        ["1 0 / 0 2", "1 1 / 0 1", "1 2"],
        ["0 1 / 1 0", "1 0 / 0 1", "3 -1"],
      ].flatMap(([q, k, v], h) => [
        { name: `q${h}`, label: `W_q, head ${h + 1}`, value: q },
        { name: `k${h}`, label: `W_k, head ${h + 1}`, value: k },
        { name: `v${h}`, label: `W_v, head ${h + 1}`, value: v },
      ]),
    ],
    compute(given) {
      const heads = [0, 1].map((h) => ({ W_q: given[`q${h}`], W_k: given[`k${h}`], W_v: given[`v${h}`] })),
        width = given.X[0].length;
      if (
        heads.some(
          (head) => Object.values(head).some((W) => W[0].length !== width) || head.W_q.length !== head.W_k.length,
        )
      )
        throw new Error(
          `Each matrix needs ${width} columns, one for each number of an input; W_q and W_k equally many rows`,
        );
      return { heads: attention({ X: given.X, heads }), count: 2 * given.X.length };
    },
    draw({ X }, { heads }, step) {
      const head = Math.floor(step / X.length),
        t = step % X.length,
        { Q, K, V, S, A, O } = heads[head],
        row = (i) => i === t,
        seen = (i) => i <= t;
      const terms = A[t].slice(0, t + 1).map((weight, n) => `${number(weight)}·${vector(V[n])}`);
      return [
        formula(
          `head ${head + 1}, position ${t + 1}: S = q · k / √${K[0].length} = ${vector(S[t].slice(0, t + 1))}`,
          `o = ${terms.join(" + ")} = ${vector(O[t])}`,
        ),
        beside(grid("Q", Q, row), grid("K", K, seen), grid("V", V, seen)),
        beside(
          grid("scores S", S, row, { there: (i, j) => j <= i }),
          grid("weights A = softmax(S)", A, row, { there: (i, j) => j <= i, heat: (weight) => weight }),
          grid("outputs O = A V", O, row, { there: seen }),
        ),
      ];
    },
  },
  {
    id: "temperature",
    title: "Temperature",
    text: "The logits are divided by the temperature τ before the softmax. Small temperatures sharpen the distribution, large ones flatten it; 0 is not a division but the limit, everything on the largest.",
    inputs: [
      { name: "names", label: "Tokens", value: "token0 token1 token2 token3", kind: "words" },
      { name: "s", label: "Logits s", value: "2 1 0.5 -1", kind: "vector" },
      { name: "taus", label: "Temperatures", value: "0 0.5 1 2", kind: "vector" },
    ],
    async fromModel(session) {
      const { before } = await session.look(session.cursor, 0),
        best = before.next.slice(0, 8);
      return {
        names: words(best),
        s: best.map(({ probability }) => number(Math.log(probability))).join(" "),
      };
    },
    compute({ names, s, taus }) {
      if (names.length !== s.length) throw new Error(`One name is needed for each of the ${s.length} logits`);
      if (taus.some((tau) => tau < 0)) throw new Error("A temperature is 0 or above");
      return { all: taus.map((tau) => softmaxOf(s, tau)), count: taus.length };
    },
    draw({ names, s, taus }, { all }, step) {
      const p = all[step],
        entropy = p.reduce((sum, q) => sum - (q > 0 ? q * Math.log(q) : 0), 0);
      return [
        formula(
          `p = softmax(s / τ), s = ${vector(s)}, τ = ${number(taus[step])}`,
          `p = ${vector(p)}`,
          `entropy ${number(entropy)} nats, between 0 and log ${s.length} = ${number(Math.log(s.length))}`,
        ),
        columns(names, p),
      ];
    },
  },
  {
    id: "copying",
    title: "The copy head",
    text: "A name is easier to copy than to know. Beside the distribution over the vocabulary stands one over the tokens so far: the query asks where things stood as they stand now, and what is copied is what came then. A gate g mixes the two.",
    inputs: [
      { name: "words", label: "Text so far", value: "Pia met Tom . Then", kind: "words" },
      { name: "scores", label: "Scores S", value: "2 0 1 -1 0", kind: "vector" },
      { name: "names", label: "Vocabulary", value: "Pia Tom met Then . the", kind: "words" },
      { name: "z", label: "Logits z", value: "0.5 0.5 -1 -2 0 1.5", kind: "vector" },
      { name: "u", label: "Gate u", value: "0", kind: "number", range: { min: -12, max: 12, step: 0.25 } },
    ],
    async fromModel(session) {
      const {
        before: { copy, next },
      } = await session.look(session.cursor, 0);
      if (!copy) throw new Error("This model has no copy head");
      const path = session.path.slice(0, session.cursor).slice(-12),
        best = next.slice(0, 8);
      if (!path.length) throw new Error("Nothing stands before the beginning: move the cursor in the story");
      const share = (id) =>
        session.path
          .slice(0, session.cursor)
          .reduce((sum, token, n) => sum + (token.id === id ? copy.weights[n + 1] : 0), 0);
      return {
        words: words(path),
        scores: copy.weights
          .slice(-path.length)
          .map((weight) => number(Math.log(Math.max(weight, 1e-9))))
          .join(" "),
        names: words(best),
        z: best
          .map(({ id, probability }) =>
            number(Math.log(Math.max(1e-9, (probability - copy.gate * share(id)) / (1 - copy.gate)))),
          )
          .join(" "),
        u: number(Math.log(copy.gate / (1 - copy.gate))),
      };
    },
    compute({ words, scores, names, z, u }) {
      if (words.length !== scores.length || names.length !== z.length)
        throw new Error("One score is needed for each word of the text, one logit for each of the vocabulary");
      return {
        ...copying({ names, z, scores, tokens: words.map((word) => names.indexOf(word)), u }),
        count: words.length,
      };
    },
    draw({ words, names }, { A, g, own, c, p }, step) {
      const so = words.slice(0, step + 1),
        c_so = names.map((name) => so.reduce((sum, word, n) => sum + (word === name ? A[n] : 0), 0));
      return [
        formula(
          `place ${step + 1}, “${words[step]}”: A = ${number(A[step])}, so c(${words[step]}) = ${number(c_so[names.indexOf(words[step])] ?? 0)} so far`,
          `g = sigmoid(u) = ${number(g)}: copied with ${percent(g)}`,
        ),
        element(
          "p",
          { class: "sources" },
          ...words.map((word, n) =>
            element("span", { class: n === step && "is-copied", "--share": A[n] }, `${word} ${percent(A[n])}`),
          ),
        ),
        beside(
          element("div", {}, element("h3", {}, "softmax(z), the vocabulary's"), columns(names, own)),
          element(
            "div",
            {},
            element("h3", {}, "c, copied from the text"),
            columns(names, step + 1 < words.length ? c_so : c),
          ),
          element("div", {}, element("h3", {}, "p = (1 - g) softmax(z) + g c"), columns(names, p)),
        ),
      ];
    },
  },
];

// The model in plain JavaScript: what src/rhapsode/model.py says, one token at a time, over typed arrays.
//
// Products are summed in float64 and kept in float32, in one order, so that every browser computes the same bits. A
// Reader keeps what every layer made of every token: it can go back to any of them and tell what was looked at there.

import { POWERS, exp, log, logSum, sigmoid, softmax, tanh } from "./numbers.js";

// y[r] = b[r] + sum_c W[r, c] x[c]; four rows at once, so that x is read a quarter as often. A map's own `result` is used
// again by its next call.
function affine({ weight: W, bias: b, rows, columns, result }, x, y = result) {
  let r = 0;
  for (; r + 4 <= rows; r += 4) {
    const p0 = r * columns,
      p1 = p0 + columns,
      p2 = p1 + columns,
      p3 = p2 + columns;
    let s0 = 0,
      s1 = 0,
      s2 = 0,
      s3 = 0;
    for (let c = 0; c < columns; c++) {
      const v = x[c];
      s0 += W[p0 + c] * v;
      s1 += W[p1 + c] * v;
      s2 += W[p2 + c] * v;
      s3 += W[p3 + c] * v;
    }
    if (b) {
      s0 += b[r];
      s1 += b[r + 1];
      s2 += b[r + 2];
      s3 += b[r + 3];
    }
    y[r] = s0;
    y[r + 1] = s1;
    y[r + 2] = s2;
    y[r + 3] = s3;
  }
  for (; r < rows; r++) {
    let s = b ? b[r] : 0;
    for (let c = 0, p = r * columns; c < columns; c++) s += W[p + c] * x[c];
    y[r] = s;
  }
  return y;
}

function rmsNorm(weight, x, y) {
  let squares = 0;
  for (let i = 0; i < x.length; i++) squares += x[i] * x[i];
  const scale = 1 / Math.sqrt(squares / x.length + 2 ** -23); // float32's epsilon
  for (let i = 0; i < x.length; i++) y[i] = x[i] * scale * weight[i];
  return y;
}

function addTo(x, part) {
  for (let i = 0; i < x.length; i++) x[i] += part[i];
}

// -- weights -----------------------------------------------------------------------------------------------------

// The tensors of a packed model (export/packed.py), inflated: {config, weights: {name: {data, shape}}}.
export function unpack(bytes) {
  const headerLength = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerLength)));
  const raw = (name) => {
    const {
      dtype,
      shape,
      data_offsets: [begin, end],
    } = header[name];
    const copy = bytes.slice(8 + headerLength + begin, 8 + headerLength + end).buffer; // a copy is aligned
    if (dtype === "F16") return { shape, data: Float32Array.from(new Uint16Array(copy), halfToNumber) };
    return { shape, data: dtype === "I8" ? new Int8Array(copy) : new Float32Array(copy) };
  };
  const weights = {};
  for (const name in header) {
    if (name === "__metadata__" || name.endsWith(".scale")) continue;
    const tensor = raw(name);
    if (tensor.data instanceof Int8Array) {
      tensor.data = scaled(tensor.data, raw(name + ".scale").data);
    }
    weights[name] = tensor;
  }
  return { config: JSON.parse(header.__metadata__.config), weights };
}

function scaled(q, scale) {
  const data = new Float32Array(q.length),
    columns = q.length / scale.length;
  for (let row = 0, i = 0; row < scale.length; row++)
    for (const end = i + columns; i < end; i++) data[i] = q[i] * scale[row];
  return data;
}

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    fraction = bits & 1023;
  return sign * (exponent ? (1 + fraction / 1024) * POWERS[exponent - 15 + 1074] : fraction * POWERS[1050]);
}

// -- the model ---------------------------------------------------------------------------------------------------

export class Network {
  constructor({ config, weights }) {
    this.config = config;
    const linear = (name) => {
      const weight = weights[`${name}.weight`];
      return (
        weight && {
          weight: weight.data,
          bias: weights[`${name}.bias`]?.data,
          rows: weight.shape[0],
          columns: weight.shape[1],
          result: new Float32Array(weight.shape[0]),
        }
      );
    };
    const vector = (name) => weights[`${name}.weight`]?.data;
    const block = (at) => ({
      rnnNorm: vector(`${at}rnn_norm`),
      input: linear(`${at}rnn.cell.i2h`),
      recurrent: linear(`${at}rnn.cell.h2h`),
      keep: linear(`${at}rnn.cell.keep`),
      candidate: linear(`${at}rnn.cell.candidate`),
      gate: linear(`${at}rnn.gate`),
      out: linear(`${at}rnn.out`),
      attentionNorm: vector(`${at}attention_norm`),
      query: linear(`${at}attention.query_transform`),
      key: linear(`${at}attention.key_transform`),
      value: linear(`${at}attention.value_transform`),
      output: linear(`${at}attention.output_transform`),
      innerNorm: vector(`${at}feed_forward.0`),
      inner: linear(`${at}feed_forward.1`),
      outer: linear(`${at}feed_forward.3`),
    });
    const stacked = config.kind === "stacked";
    this.embedding = linear("embeddings");
    this.pairs = linear("pair_embeddings");
    this.blocks = stacked ? Array.from({ length: config.num_layers }, (_, i) => block(`blocks.${i}.`)) : [block("")];
    this.norm = vector("norm");
    this.head = linear("lm_head") ?? this.embedding;
    const query = linear("copy_head.query_transform");
    this.copy = query && { query, key: linear("copy_head.key_transform"), gate: linear("copy_head.gate") };
    this.normal = new Float32Array(this.embedding.columns);
    this.start = new Float32Array(config.hidden_dim); // h before the first token
    this.act = config.activation === "tanh" ? tanh : (x) => (x > 0 ? x : 0);
  }
}

// A matrix that grows by rows.
class Rows {
  constructor(width) {
    this.width = width;
    this.data = new Float32Array(64 * width);
  }

  row(i) {
    if ((i + 1) * this.width > this.data.length) {
      const larger = new Float32Array(2 * this.data.length);
      larger.set(this.data);
      this.data = larger;
    }
    return this.data.subarray(i * this.width, (i + 1) * this.width);
  }

  copy() {
    const copy = new Rows(this.width);
    copy.data = this.data.slice();
    return copy;
  }
}

// One text as the network reads it. Row i is what was made of token i; token 0 is the one that a text begins with.
export class Reader {
  #found = []; // log-probability of the token after row i, once it was asked for

  constructor(network) {
    this.network = network;
    this.ids = [];
    this.features = new Rows(network.head.columns);
    this.layers = network.blocks.map(({ out, query, key, value }) => ({
      hidden: new Rows(out.columns),
      ...(query && { q: new Rows(query.rows), k: new Rows(key.rows), v: new Rows(value.rows) }),
    }));
    this.copies = network.copy && { q: new Rows(network.copy.query.rows), k: new Rows(network.copy.key.rows) };
  }

  get length() {
    return this.ids.length;
  }

  // A reader that has read the same and goes its own way.
  fork() {
    const other = new Reader(this.network);
    other.ids = this.ids.slice();
    other.features = this.features.copy();
    const copies = (layer) =>
      layer && Object.fromEntries(Object.entries(layer).map(([name, rows]) => [name, rows.copy()]));
    other.layers = this.layers.map(copies);
    other.copies = copies(this.copies);
    return other;
  }

  // Reads these ids, of which those that it has read already cost nothing.
  read(ids) {
    let same = 0;
    while (same < ids.length && same < this.ids.length && ids[same] === this.ids[same]) same++;
    this.ids.length = same;
    this.#found.length = Math.min(this.#found.length, Math.max(0, same - 1));
    for (let i = same; i < ids.length; i++) this.push(ids[i]);
  }

  push(id) {
    const { network, ids } = this,
      { config } = network,
      t = ids.length;
    const width = network.embedding.columns;
    let x = network.embedding.weight.slice(id * width, (id + 1) * width);
    if (network.pairs) {
      // below 2^53 for every vocabulary below 2^32, so that the remainder is exact
      const row = ((t ? ids[t - 1] : 0) * 1_000_003 + id * 7_919) % config.pair_embeddings;
      addTo(x, network.pairs.weight.subarray(row * width, (row + 1) * width));
    }
    ids.push(id);
    network.blocks.forEach((block, i) => {
      x =
        config.kind === "stacked" ? this.#block(block, this.layers[i], x, t) : this.#plain(block, this.layers[i], x, t);
    });
    const features = this.features.row(t);
    if (network.norm) rmsNorm(network.norm, x, features);
    else features.set(x);
    if (network.copy) {
      // a token's key is made of the features before it: what looked like this, and what came then?
      if (t === 0) this.copies.k.row(0).fill(0);
      affine(network.copy.query, features, this.copies.q.row(t));
      affine(network.copy.key, features, this.copies.k.row(t + 1));
    }
  }

  #plain(block, layer, x, t) {
    return this.#attend(block, layer, this.#recur(block, layer, x, t), t);
  }

  #block(block, layer, x, t) {
    const { normal } = this.network;
    addTo(x, this.#recur(block, layer, rmsNorm(block.rnnNorm, x, normal), t));
    if (block.query) addTo(x, this.#attend(block, layer, rmsNorm(block.attentionNorm, x, normal), t));
    if (block.inner) {
      const inner = affine(block.inner, rmsNorm(block.innerNorm, x, normal));
      for (let i = 0; i < inner.length; i++) inner[i] = inner[i] > 0 ? inner[i] * inner[i] : 0;
      addTo(x, affine(block.outer, inner));
    }
    return x;
  }

  #recur({ input, recurrent, keep, candidate, gate, out }, layer, i, t) {
    const { act } = this.network,
      H = out.columns;
    const h = layer.hidden.row(t),
      before = t ? layer.hidden.row(t - 1) : this.network.start;
    if (keep) {
      const a = affine(keep, i),
        c = affine(candidate, i);
      for (let j = 0; j < H; j++) h[j] = c[j] + sigmoid(a[j]) * (before[j] - c[j]);
    } else {
      const from = affine(input, i),
        kept = affine(recurrent, before);
      for (let j = 0; j < H; j++) h[j] = act(from[j] + kept[j]);
    }
    let y = h;
    if (gate) {
      y = affine(gate, i);
      for (let j = 0; j < H; j++) y[j] = h[j] * y[j] * sigmoid(y[j]);
    }
    return affine(out, y);
  }

  #attend({ query, key, value, output }, layer, y, t) {
    const heads = this.network.config.num_heads,
      size = value.rows / heads;
    affine(query, y, layer.q.row(t));
    affine(key, y, layer.k.row(t));
    affine(value, y, layer.v.row(t));
    const joined = new Float32Array(value.rows);
    for (let head = 0; head < heads; head++) {
      const weights = shares(layer, heads, head, t),
        sums = new Float64Array(size);
      for (let n = 0; n <= t; n++) {
        const a = weights[n],
          begin = n * value.rows + head * size,
          v = layer.v.data;
        for (let j = 0; j < size; j++) sums[j] += a * v[begin + j];
      }
      joined.set(sums, head * size);
    }
    return affine(output, joined);
  }

  // The logits of what follows row i; with a copy head they are log-probabilities, as in copying.py.
  logits(i = this.length - 1) {
    const { head, copy } = this.network,
      x = this.features.row(i);
    const logits = new Float64Array(affine(head, x));
    if (!copy) return logits;
    const { gate, weights } = this.copied(i),
      copied = new Map();
    weights.forEach((weight, n) => copied.set(this.ids[n], (copied.get(this.ids[n]) ?? 0) + weight));
    const kept = log(1 - gate) - logSum(logits);
    for (let id = 0; id < logits.length; id++) logits[id] += kept;
    for (const [id, share] of copied) if (share) logits[id] = log(exp(logits[id]) + gate * share);
    return logits;
  }

  // The natural logarithm of a token's probability by such logits.
  logOf(logits, id) {
    return this.network.copy ? logits[id] : logits[id] - logSum(logits);
  }

  // How probable the token after row i was, as a natural logarithm.
  logProbability(i) {
    return (this.#found[i] ??= this.logOf(this.logits(i), this.ids[i + 1]));
  }

  // What may be copied at row i: {gate, weights (i + 1)}; null for a model without a copy head.
  copied(i) {
    const { copy } = this.network;
    if (!copy) return null;
    const [gate] = affine(copy.gate, this.features.row(i));
    return { gate: sigmoid(gate), weights: Array.from(shares(this.copies, 1, 0, i)) };
  }

  // What was looked at from row i: [{part, head, weights (i + 1)}]
  attention(i) {
    const { num_heads: heads } = this.network.config;
    return this.layers.flatMap((layer, block) =>
      layer.q
        ? Array.from({ length: heads }, (_, head) => ({
            part: `block ${block + 1}`,
            head,
            weights: Array.from(shares(layer, heads, head, i)),
          }))
        : [],
    );
  }

  hidden(i) {
    return this.layers.map((layer) => Array.from(layer.hidden.row(i)));
  }
}

// softmax_n(k_n . q_t / sqrt(K)) of one of several heads side by side, n = 0 .. t
function shares({ q: { data: q, width }, k: { data: k } }, heads, head, t) {
  const size = width / heads,
    scores = new Float64Array(t + 1),
    scale = 1 / Math.sqrt(size);
  for (let n = 0, a = t * width + head * size; n <= t; n++) {
    let s = 0;
    for (let j = 0, b = n * width + head * size; j < size; j++) s += q[a + j] * k[b + j];
    scores[n] = s * scale;
  }
  return softmax(scores);
}

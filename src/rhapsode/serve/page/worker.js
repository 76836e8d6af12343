// The model off the page's thread. Questions come as messages {call, name, request}; answers go back under the same
// call, in the shapes that the server's /api/inspect and /v1/completions have (see source.js).

import { exp, logSoftmax } from "./numbers.js";
import { Network, Reader, unpack } from "./runtime.js";
import { distribution, draw, randomNumbers } from "./sampling.js";
import { Spelling } from "./spelling.js";

const SLICE = 12; // milliseconds of writing before the next message is heard

let spelling, reader;
const stopped = new Set();

const answers = {
  async open({ weights, description }) {
    const inflated = new Response(new Blob([weights]).stream().pipeThrough(new DecompressionStream("deflate")));
    reader = new Reader(new Network(unpack(new Uint8Array(await inflated.arrayBuffer()))));
    spelling = new Spelling(description);
  },

  inspect({ text, tokens: given, positions = [], top = 5 }) {
    const ids = given ?? spelling.encode(text);
    const wrong = ids.find((id) => !(id < spelling.pieces.length));
    if (wrong !== undefined) throw new Error(`there is no token ${wrong} in this model`);
    read(ids);
    return {
      tokens: described(ids),
      log_probabilities: ids.map((_, i) => reader.logProbability(i)),
      positions: positions.map((position) => told(ids, position, top)),
    };
  },

  async write({ tokens: ids, n: count, ...settings }, call) {
    read(ids);
    const samples = Array.from({ length: count }, (_, index) => {
      const stream = spelling.stream();
      ids.forEach((id) => stream.push(id));
      return {
        index,
        reader: reader.fork(), // questions that come in between are answered by another
        ids: ids.slice(),
        stream,
        random: randomNumbers(settings.seed + index),
        left: settings.max_tokens,
      };
    });
    for (let going = samples; going.length && !stopped.has(call); await otherMessages()) {
      const tokens = [];
      for (const begun = performance.now(); going.length && performance.now() - begun < SLICE;) {
        for (const sample of going) tokens.push(next(sample, settings));
        going = going.filter((sample) => !sample.ended);
      }
      postMessage({ call, tokens });
    }
    stopped.delete(call);
    [{ reader }] = samples;
  },

  stop: (call) => void stopped.add(call),
};

// A text begins after the token that ends texts, as in training.
function read(ids) {
  reader.read([spelling.eos, ...ids]);
}

function described(ids) {
  const stream = spelling.stream();
  const tokens = ids.map((id) => ({ id, text: stream.push(id), piece: spelling.piece(id) }));
  if (tokens.length) tokens.at(-1).text += stream.flush();
  return tokens;
}

function told(ids, position, top) {
  const all = Array.from(logSoftmax(reader.logits(position)), (value, id) => ({
    id,
    piece: spelling.piece(id),
    probability: exp(value),
  }));
  all.sort((a, b) => b.probability - a.probability || a.id - b.id);
  const copy = reader.copied(position);
  if (copy) copy.probability = position < ids.length ? copyShare(copy, ids, position) : null;
  return {
    position,
    next: top ? all.slice(0, top) : all,
    attention: reader.attention(position),
    hidden: reader.hidden(position),
    copy,
    truth: null,
  };
}

// How probable it is that the token which came was copied, and not chosen from the vocabulary: g c / p.
function copyShare({ gate, weights }, ids, position) {
  const came = ids[position],
    copied = weights.filter((_, n) => (n ? ids[n - 1] : spelling.eos) === came);
  return (gate * copied.reduce((sum, weight) => sum + weight, 0)) / exp(reader.logits(position)[came]);
}

function next(sample, settings) {
  const { reader: own, random } = sample,
    row = own.length - 1;
  const logits = own.logits(row),
    id = draw(distribution(logits, settings, sample.ids), random);
  const log_probability = own.logOf(logits, id);
  sample.ended = id === spelling.eos ? "stop" : --sample.left === 0 ? "length" : null;
  sample.ids.push(id);
  own.push(id);
  const text = sample.stream.push(id) + (sample.ended ? sample.stream.flush() : "");
  return { sample: sample.index, id, text, piece: spelling.piece(id), log_probability, ended: sample.ended };
}

// Timers wait four milliseconds at least; a message to oneself does not.
function otherMessages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

onmessage = async ({ data: { call, name, request } }) => {
  try {
    postMessage({ call, answer: await answers[name](request, call) });
  } catch (error) {
    postMessage({ call, error: error.message });
  }
};

// Where the page gets what it shows: a server (server.js), or the model inside the file (offline.js). Both have:
//
//   models()           [{id, name, parameters, storyworld, end (what the token that ends texts is called)}, ...]
//   inspect(request)   {model, text | tokens: [ids], positions: [i, ...], top, truth} -> {
//                        tokens: [{id, text, piece}, ...]        joined texts are the text; piece is for tables
//                        log_probabilities: [...]                of each token, in nats, under the model itself
//                        truth_log_probabilities, departure, references      storyworld only, from the server
//                        positions: [{                           position i: what was thought before token i came
//                          position,
//                          next: [{id, piece, probability}, ...] the likeliest first; all of them where top is 0
//                          attention: [{part, head, weights}, ...]    i + 1 weights, the first of the begin token's
//                          copy: null | {gate, probability, weights}
//                          hidden: [[...], ...]                  of each block, after the i tokens
//                          truth: null | {next, excess_bits} }, ...] }
//   write(request, onToken, signal)     request: {model, tokens, n, max_tokens, temperature, top_k, top_p, min_p,
//                        repetition_penalty, seed}; onToken({sample, id, text, log_probability, ended}) as they come
//   runs(), run(id, after), serves      the server alone
//
// All give promises, which fail with an Error whose message is for the reader.

import { Offline } from "./offline.js";
import { Server } from "./server.js";

// askForKey: what a server that wants one is given (see server.js).
export function openSource(askForKey) {
  return document.querySelector("[data-crc32]") ? new Offline() : new Server(askForKey);
}

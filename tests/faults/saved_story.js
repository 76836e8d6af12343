// A page without elements that opens saved stories and links: a line of base64 on standard input, a line of JSON back.
// {taken} | {refused: message} | {failed: what went wrong, which must not be}

import { createInterface } from "node:readline";
import { unpacked, valid } from "./link.js";
import { LIMITS, Session } from "./session.js";

const VOCABULARY = 300;
const source = {
  async inspect({ tokens, text }) {
    const ids = tokens ?? Array.from(text, (character) => character.codePointAt(0) % VOCABULARY);
    const wrong = ids.find((id) => !(id < VOCABULARY));
    if (wrong !== undefined) throw new Error(`there is no token ${wrong} in this model`);
    const told = ids.map((id) => ({ id, text: `${id} `, piece: `${id}` }));
    return { tokens: told, log_probabilities: ids.map(() => -1), positions: [] };
  },
};

async function opened(bytes, kind) {
  const text = new TextDecoder().decode(bytes);
  let state = null;
  if (kind === "link") state = await unpacked(text);
  else
    try {
      state = JSON.parse(text);
    } catch {
      return { refused: "This file holds no saved story" };
    }
  if (!valid(state)) return { refused: "no story" };
  const session = new Session(source);
  const models = [{ id: "m", end: "300" }];
  session.model = models[0];
  await session.restore(state, models);
  for (const [name, { min, max }] of Object.entries(LIMITS)) {
    const value = session.settings[name];
    if (!(value >= min && value <= max)) return { failed: `${name} is ${value}` };
  }
  if (!session.path.every(({ id }) => Number.isInteger(id) && id >= 0 && id < VOCABULARY))
    return { failed: "a token that there is not" };
  if (!(session.cursor >= 0 && session.cursor <= session.path.length)) return { failed: `cursor ${session.cursor}` };
  if (!valid(JSON.parse(JSON.stringify(session.state)))) return { failed: "it cannot be saved again" };
  return session.failure ? { refused: session.failure.message } : { taken: session.path.length };
}

for await (const line of createInterface({ input: process.stdin })) {
  const [kind, data] = line.split(" ");
  let answer;
  try {
    answer = await opened(Buffer.from(data, "base64"), kind);
  } catch (error) {
    answer = { failed: `${error.name}: ${error.message}` };
  }
  console.log(JSON.stringify(answer));
}

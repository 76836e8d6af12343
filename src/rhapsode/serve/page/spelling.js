// Text to token ids and back, after a description that export/spelling.py makes of a tokenizer.

const WHITE = "\\p{White_Space}";
const CUTS = {
  words: new RegExp(
    `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${WHITE}\\p{L}\\p{N}]+|${WHITE}+(?!\\P{White_Space})|${WHITE}+`,
    "gu",
  ),
  spaces: new RegExp(`(?! )[${WHITE}<]| ?[^${WHITE}<]+| `, "gu"),
  lines: new RegExp(`[${WHITE}<]|▁?[^${WHITE}<▁]+|▁`, "gu"),
  none: /[^]+/gu,
};

// Byte-level vocabularies write each byte as a character: printable Latin-1 as itself, the rest from U+0100 on.
const CHARACTER_OF_BYTE = [],
  BYTE_OF_CHARACTER = new Map();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  CHARACTER_OF_BYTE[byte] = String.fromCharCode(printable ? byte : next++);
  BYTE_OF_CHARACTER.set(CHARACTER_OF_BYTE[byte], byte);
}

const utf8 = new TextEncoder();

export class Spelling {
  constructor(description) {
    Object.assign(this, description);
    this.ends = new Set(description.ends);
    this.idOf = new Map(this.pieces.map((piece, id) => [piece, id]));
    this.alone = description.space_before_names ? new RegExp(`(${description.space_before_names})`, "gu") : null;
    if (this.merges) {
      this.rankOf = new Map(this.merges.map(([left, right], rank) => [left * 2 ** 24 + right, rank]));
      this.merged = this.merges.map(([left, right]) => this.idOf.get(this.pieces[left] + this.pieces[right]));
    }
    if (this.scores) {
      this.lowest = Math.min(...this.scores) - 10; // an unknown character costs more than any piece
      this.longest = this.pieces.reduce((most, piece) => Math.max(most, piece.length), 1);
    }
  }

  encode(text) {
    return this.#parts(text).flatMap((part) => (this.scores ? this.#unigram(part) : this.#bpe(part)));
  }

  #parts(text) {
    if (this.cut === "metaspace") {
      const words = this.#normal(text)
        .split(new RegExp(`${WHITE}+`, "u"))
        .filter(Boolean);
      return words.flatMap((word) => word.replace(/^(?!▁)/, "▁").match(/▁[^▁]*/g));
    }
    const parts = this.alone ? text.split(this.alone) : [this.cut === "lines" ? text.replaceAll(" ", "▁") : text];
    return parts.flatMap((part) => part.match(CUTS[this.cut]) ?? []);
  }

  #normal(text) {
    return Array.from(text, (character) => this.exceptions[character] ?? character)
      .join("")
      .normalize("NFKC");
  }

  // The best-ranked pair of neighbours becomes one piece, the leftmost first, until no pair has a rank.
  #bpe(part) {
    const symbols =
      this.bytes === "level" ? Array.from(utf8.encode(part), (byte) => CHARACTER_OF_BYTE[byte]) : Array.from(part);
    const ids = symbols.map((symbol) => this.idOf.get(symbol) ?? this.unk).filter((id) => id !== null);
    for (;;) {
      let best = Infinity,
        place = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const rank = this.rankOf.get(ids[i] * 2 ** 24 + ids[i + 1]);
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return ids;
      ids.splice(place, 2, this.merged[best]);
    }
  }

  // The pieces of the largest sum of scores (Viterbi); what no piece spells is bytes, or unknown as a whole.
  #unigram(part) {
    const best = [{ score: 0 }];
    for (let start = 0; start < part.length;) {
      const width = part.codePointAt(start) > 0xffff ? 2 : 1,
        { score } = best[start];
      let single = false;
      for (let end = start + width; end <= Math.min(part.length, start + this.longest); end++) {
        const id = this.idOf.get(part.slice(start, end));
        if (id === undefined || this.ends.has(id)) continue;
        this.#reach(best, end, start, id, score + this.scores[id]);
        single ||= end === start + width;
      }
      if (!single) this.#reach(best, start + width, start, this.unk, score + this.lowest);
      start += width;
    }
    const ids = [];
    for (let end = part.length; end > 0;) {
      let { id, start } = best[end];
      while (id === this.unk && start > 0 && best[start].id === this.unk) start = best[start].start;
      ids.unshift(...(id === this.unk ? this.#unknown(part.slice(start, end)) : [id]));
      end = start;
    }
    return ids;
  }

  #reach(best, end, start, id, score) {
    if (!best[end] || score > best[end].score) best[end] = { score, start, id };
  }

  #unknown(text) {
    const bytes =
      this.bytes === "fallback" ? Array.from(utf8.encode(text), (byte) => this.idOf.get(byteName(byte))) : [undefined];
    return bytes.includes(undefined) ? [this.unk] : bytes;
  }

  // The bytes that a token spells; none for a token that is no text.
  bytesOf(id) {
    if (this.ends.has(id)) return new Uint8Array();
    const piece = this.pieces[id] ?? "";
    if (this.bytes === "level") {
      const bytes = Array.from(piece, (character) => BYTE_OF_CHARACTER.get(character));
      return bytes.includes(undefined) ? utf8.encode(piece) : Uint8Array.from(bytes);
    }
    if (this.bytes === "fallback" && /^<0x[0-9A-F]{2}>$/.test(piece))
      return Uint8Array.of(parseInt(piece.slice(3, 5), 16));
    return utf8.encode(this.cut === "lines" || this.cut === "metaspace" ? piece.replaceAll("▁", " ") : piece);
  }

  // What turns ids into text as they come: a character of several tokens comes with the last of them.
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let first = this.cut === "metaspace"; // its first blank stands before the text
    return {
      push: (id) => {
        let text = decoder.decode(this.bytesOf(id), { stream: true });
        if (first && text) [text, first] = [text.replace(/^ /, ""), false];
        return text;
      },
      flush: () => decoder.decode(),
    };
  }

  // A token as tables show it: a blank is ▁, a lone byte <0xE2>, a line end \n.
  piece(id) {
    if (this.ends.has(id)) return this.pieces[id];
    const bytes = this.bytesOf(id);
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
      return text.replaceAll(" ", "▁").replace(/[\p{C}\p{Z}]/gu, escaped);
    } catch {
      return Array.from(bytes, byteName).join("");
    }
  }
}

const hexadecimal = (n, digits) => n.toString(16).padStart(digits, "0");

function escaped(character) {
  const code = character.codePointAt(0),
    short = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
  return (
    short ??
    (code < 0x100
      ? `\\x${hexadecimal(code, 2)}`
      : code < 0x10000
        ? `\\u${hexadecimal(code, 4)}`
        : `\\U${hexadecimal(code, 8)}`)
  );
}

const byteName = (byte) => `<0x${hexadecimal(byte, 2).toUpperCase()}>`;

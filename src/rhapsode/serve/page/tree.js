// A story and its branches. A branch shares the first `at` tokens of its parent's path and goes its own way from there;
// a path only ever grows at its end, so that what others share stays.

export class Tree {
  branches = new Map(); // id -> {id, name, parent, at, tokens: [{id, text, piece, bits}]}
  current = null;
  #next = 1;

  // A new branch off `parent`'s path, which becomes the current one; parent null, or nothing shared: a story of its own.
  add(parent, at, tokens, name = "") {
    let from = at ? this.branches.get(parent) : undefined;
    while (from && at <= from.at && from.parent !== null) from = this.branches.get(from.parent); // where the tokens are
    const branch = { id: this.#next++, name, parent: from?.id ?? null, at: from ? at : 0, tokens: [...tokens] };
    this.branches.set(branch.id, branch);
    this.current = branch.id;
    return branch;
  }

  // All tokens of a branch, from the beginning of its story.
  path(id = this.current) {
    const branch = this.branches.get(id);
    if (!branch) return [];
    return branch.parent === null ? branch.tokens : [...this.path(branch.parent).slice(0, branch.at), ...branch.tokens];
  }

  append(id, token) {
    this.branches.get(id).tokens.push(token);
  }

  children(id) {
    return [...this.branches.values()].filter((branch) => branch.parent === id);
  }

  // Without this branch and all that grew from it; what is current moves to its parent or to another story.
  prune(id) {
    const { parent } = this.branches.get(id);
    const remove = (gone) => {
      this.children(gone).forEach((child) => remove(child.id));
      this.branches.delete(gone);
    };
    remove(id);
    if (!this.branches.has(this.current)) this.current = parent ?? [...this.branches.keys()].at(-1) ?? null;
  }

  // What a link or a file holds: ids and nothing that the model can tell again.
  toJSON() {
    const number = new Map([...this.branches.keys()].map((id, i) => [id, i]));
    return {
      current: number.get(this.current) ?? 0,
      branches: [...this.branches.values()].map(({ name, parent, at, tokens }) => [
        name,
        parent === null ? -1 : number.get(parent),
        at,
        tokens.map(({ id }) => id),
      ]),
    };
  }

  // tokensOf(ids) -> promise of the tokens that a whole path's ids stand for.
  static async fromJSON({ current, branches }, tokensOf) {
    const tree = new Tree(),
      made = [];
    for (const [name, parent, at, ids] of branches) {
      const before = parent < 0 ? [] : tree.path(made[parent]).slice(0, at);
      const tokens = await tokensOf([...before.map(({ id }) => id), ...ids]);
      const branch = tree.add(parent < 0 ? null : made[parent], at, tokens.slice(before.length), String(name));
      made.push(branch.id);
    }
    tree.current = made[current] ?? made.at(-1) ?? null;
    return tree;
  }
}

// The text that stands at each token. A character that takes several tokens (an emoji, a letter with its accents) stands
// whole at the last of them: cut over two elements it would fall apart.
export function shownTexts(tokens) {
  const shown = tokens.map(() => ""),
    ends = [];
  let length = 0;
  for (const { text } of tokens) ends.push((length += text.length));
  const whole = tokens.map(({ text }) => text).join("");
  let place = 0;
  for (const { segment, index } of new Intl.Segmenter(undefined, { granularity: "grapheme" }).segment(whole)) {
    while (ends[place] < index + segment.length) place++;
    shown[place] += segment;
  }
  return shown;
}

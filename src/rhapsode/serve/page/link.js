// The page's state as text for the address or a file: JSON, compressed, in the letters that an address may have.

async function through(stream, bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

export async function packed(state) {
  const bytes = await through(new CompressionStream("deflate-raw"), new TextEncoder().encode(JSON.stringify(state)));
  const letters = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// The state of an address; null where there is none or it is broken.
export async function unpacked(text) {
  if (!text) return null;
  try {
    const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = await through(
      new DecompressionStream("deflate-raw"),
      Uint8Array.from(letters, (letter) => letter.charCodeAt(0)),
    );
    const state = JSON.parse(new TextDecoder().decode(bytes));
    return valid(state) ? state : null;
  } catch {
    return null;
  }
}

const MOST_BRANCHES = 1000,
  MOST_TOKENS = 65536; // of all branches together

// A link or a file comes from anywhere: what is not shaped like a state, or would take minutes to read, is none.
export function valid(state) {
  const whole = (n) => Number.isInteger(n),
    textOrNone = (text) => text === undefined || typeof text === "string";
  return (
    state?.version === 1 &&
    textOrNone(state.model) &&
    textOrNone(state.text) &&
    Array.isArray(state.tree?.branches) &&
    state.tree.branches.length <= MOST_BRANCHES &&
    state.tree.branches.reduce((sum, branch) => sum + (branch?.[3]?.length || 0), 0) <= MOST_TOKENS &&
    typeof state.settings === "object" &&
    state.settings !== null &&
    state.tree.branches.every(
      (branch, i) =>
        Array.isArray(branch) &&
        typeof branch[0] === "string" &&
        whole(branch[1]) &&
        branch[1] < i &&
        whole(branch[2]) &&
        branch[2] >= 0 &&
        Array.isArray(branch[3]) &&
        branch[3].every((id) => whole(id) && id >= 0),
    )
  );
}

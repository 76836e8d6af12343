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

// A link comes from anywhere: what is not shaped like a state is none.
export function valid(state) {
  const whole = (n) => Number.isInteger(n);
  return (
    state?.version === 1 &&
    Array.isArray(state.tree?.branches) &&
    typeof state.settings === "object" &&
    state.settings !== null &&
    state.tree.branches.every(
      (branch, i) =>
        Array.isArray(branch) &&
        whole(branch[1]) &&
        branch[1] < i &&
        whole(branch[2]) &&
        branch[2] >= 0 &&
        Array.isArray(branch[3]) &&
        branch[3].every((id) => whole(id) && id >= 0),
    )
  );
}

// Elements without markup: what is text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

// element("button", { class: "main", onclick: go, "aria-label": "Go" }, "Go", other, ...)
export function element(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function shape(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const find = (id) => document.getElementById(id);

// What assistive technology reads out, once.
export function announce(text) {
  find("announced").textContent = text;
}

export function save(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export const percent = (p) =>
  p >= 0.9995
    ? "100%"
    : p >= 0.1
      ? `${(100 * p).toFixed(0)}%`
      : p >= 0.001
        ? `${(100 * p).toFixed(1)}%`
        : p > 0
          ? "<0.1%"
          : "0%";
export const bitsOf = (nats) => -nats / Math.LN2;

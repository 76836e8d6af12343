// The page comes together here: views, buttons, the theme, the address.

import { Branches } from "./branches.js";
import { announce, element, find, save } from "./dom.js";
import { Lectures } from "./lectures.js";
import { packed, unpacked, valid } from "./link.js";
import { Runs } from "./runs.js";
import { Session } from "./session.js";
import { openSource } from "./source.js";
import { StoryView } from "./storyview.js";
import { Thought } from "./thought.js";

const FIRST = { temperature: 0.5, max_tokens: 400, seed: 1 }; // of the story that stands there at first
const WAIT = 400; // milliseconds after the last change before the address has it

const source = openSource(askForKey),
  session = new Session(source);
const story = new StoryView(session);
new Thought(session, story);
new Branches(session);

// -- views -----------------------------------------------------------------------------------------------------------

const views = { story: "Story", ...(source.serves && { runs: "Runs" }), lectures: "Lectures" };
let address = { view: "story", state: null };

function show(view, chapter) {
  address.view = view;
  for (const name of Object.keys(views)) find(`view-${name}`).hidden = name !== view;
  find("views").replaceChildren(
    ...Object.entries(views).map(([name, title]) =>
      element("li", {}, element("a", { href: `#${name}`, "aria-current": name === view && "page" }, title)),
    ),
  );
  document.title = `Rhapsode: ${view === "story" ? "see a small model think" : views[view]}`;
  if (view === "runs") runs.open();
  if (view === "lectures") lectures.open(chapter);
}

// #VIEW or #VIEW/CHAPTER or #VIEW~STATE
async function go() {
  const [, view, chapter, text] = /^#?(\w*)(?:\/([\w-]+))?(?:~([\w-]*))?$/.exec(location.hash) ?? [];
  show(view in views ? view : "story", chapter);
  if (text && text !== address.state) {
    const state = await unpacked(text);
    if (state) await session.restore(state, models);
    else tell({ message: "This link is broken: no story can be restored from it" });
    return Boolean(state);
  }
  return false;
}

let timer = 0;
function remember() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (session.busy || address.view !== "story") return;
    address.state = await packed(session.state);
    history.replaceState(null, "", `#story~${address.state}`);
  }, WAIT);
}

// -- what went wrong -------------------------------------------------------------------------------------------------

function tell(failure) {
  find("notice").hidden = !failure;
  if (!failure) return;
  const again =
    failure.again &&
    element(
      "button",
      {
        type: "button",
        onclick: () => {
          tell(null);
          failure.again();
        },
      },
      "Try again",
    );
  const words = failure.message;
  find("notice").replaceChildren(`${words.charAt(0).toUpperCase()}${words.slice(1)}. `, again ?? "");
}

function askForKey() {
  const dialog = find("ask-key");
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue && find("key").value), { once: true }),
  );
}

// -- buttons ---------------------------------------------------------------------------------------------------------

function press(id, act) {
  find(id).addEventListener("click", act);
}

find("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!session.busy) session.begin(find("prompt").value || find("prompt").placeholder);
});
press("continue", () => session.write());
press("stop", () => session.stop());
press("edit", () => {
  find("text").value = session.text;
  editing(true);
  const typed = session.path
    .slice(0, session.cursor)
    .map(({ text }) => text)
    .join("").length;
  find("text").focus();
  find("text").setSelectionRange(typed, typed);
});
press("cancel", () => editing(false));
find("editing").addEventListener("submit", async (event) => {
  event.preventDefault();
  editing(false);
  await session.edit(find("text").value.replaceAll("\r\n", "\n"));
  if (session.failure) editing(true); // what was typed is not lost
});
find("text").addEventListener("keydown", (event) => {
  if (event.key === "Escape") editing(false);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("editing").requestSubmit();
});

function editing(on) {
  find("editing").hidden = !on;
  document.querySelector(".paper").hidden = on;
  if (!on) find("story").focus();
}

press("save", () => save("story.json", JSON.stringify(session.state)));
press("load", () => find("file").click());
find("file").addEventListener("change", async ({ target }) => {
  const state = await target.files[0]
    ?.text()
    .then(JSON.parse)
    .catch(() => null);
  target.value = "";
  if (valid(state)) session.restore(state, models);
  else tell({ message: "This file holds no saved story" });
});
press("link", async () => {
  const link = `${location.href.split("#")[0]}#story~${await packed(session.state)}`;
  const copied = await navigator.clipboard?.writeText(link).then(
    () => true,
    () => false,
  );
  history.replaceState(null, "", link);
  find("link").textContent = copied ? "The link was copied" : "The link is in the address";
  announce(find("link").textContent);
  setTimeout(() => (find("link").textContent = "Copy the link"), 4000);
});

const plural = (count, name) => `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`;

function busy() {
  find("continue").hidden = session.busy;
  find("continue").disabled = session.ended;
  find("continue").textContent = session.ended ? "The story has ended" : "Write on";
  find("stop").hidden = !session.busy;
  find("edit").disabled = find("begin").querySelector("button").disabled = session.busy;
  find("progress").textContent = session.busy ? "" : plural(session.path.length, "token");
}

let begun = 0,
  written = 0;
session.addEventListener("token", () => {
  written++;
  const seconds = (performance.now() - begun) / 1000;
  if (written % 10 === 0)
    find("progress").textContent = `${Math.round(written / seconds).toLocaleString("en")} tokens a second`;
});
session.addEventListener("busy", () => {
  [begun, written] = [performance.now(), 0];
  busy();
});
for (const type of ["path", "cursor", "settings", "busy"]) session.addEventListener(type, remember);
session.addEventListener("path", busy);
session.addEventListener("path", () => session.text === find("text").value && !find("editing").hidden && editing(false));
session.addEventListener("failed", ({ detail }) => tell(detail));
session.addEventListener("model", () => modelLine());

// -- the theme: the system's, until it is switched -------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  find("theme").textContent = (name ?? (dark.matches ? "dark" : "light")) === "dark" ? "Light" : "Dark";
}
press("theme", () => theme(find("theme").textContent.toLowerCase()));
dark.addEventListener("change", () => theme(document.documentElement.dataset.theme));
theme(null);

// -- the beginning ---------------------------------------------------------------------------------------------------

let models = [];
const runs = new Runs(session, () => models),
  lectures = new Lectures(session);

function modelLine() {
  const { name, parameters } = session.model;
  const about = `${parameters >= 1e6 ? `${(parameters / 1e6).toFixed(1)} million` : parameters.toLocaleString("en")} parameters`;
  const choose =
    models.length > 1 &&
    element(
      "select",
      { "aria-label": "Model", onchange: ({ target }) => session.choose(models[target.selectedIndex]) },
      ...models.map((model) => element("option", { selected: model === session.model }, model.name)),
    );
  find("model").replaceChildren(...(choose ? [choose, " "] : [name, ", "]), about);
}

async function start() {
  find("model").textContent = "Loading the model …";
  try {
    models = await source.models();
    [session.model] = models;
    if (!session.model) throw new Error("the server has no model to show");
  } catch (error) {
    return tell({ message: error.message, again: start });
  }
  modelLine();
  tell(null);
  if (await go()) return;
  if (session.model.sample) await session.open(session.model.sample);
  else {
    const { settings } = session;
    session.settings = { ...settings, ...FIRST };
    await session.begin("", true);
    session.settings = settings;
    session.say("settings");
    if (session.failure && session.model.training) {
      show("runs"); // where it can be watched meanwhile
      session.fail({
        message: `The run ${session.model.name} has no checkpoint yet: its first story comes after its first validation`,
        again: session.failure.again,
      });
    }
  }
  session.point(session.telling);
}

addEventListener("hashchange", go);
start();

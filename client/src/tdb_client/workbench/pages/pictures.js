// Further pictures of an answer. Each has a module of its own, which is loaded when it is opened.

import { byId, make } from "../report/elements.js";

const PICTURES = [
  { name: "heat", title: "Layer by token", hint: "What all heads and MLPs write, by layer and token." },
  { name: "head", title: "Attention of any head", hint: "All that one head attends to, whether or not its pairs are listed." },
  { name: "lens", title: "Lens", hint: "What the residual stream would say after each layer, if it were read as the last one is." },
  { name: "graph", title: "Edges", hint: "Which component hands the objective on to which. Needs a baseline." },
  { name: "circuit", title: "Circuit", hint: "The few heads and MLPs that keep the objective, and how much any number of them keeps." },
];

/**
 * The pictures' places, closed but for those that were open.
 *
 * @param context what a picture is drawn with: `question`, `data`, `model`, `page`, `signal`
 * @param opened names of those that are open
 * @param onOpened told of them when it changes
 * @param kept a place of the same answer that stays as it is, with what goes on in it
 */
export function pictureSections(context, opened, onOpened, kept = null) {
  return PICTURES.map(({ name, title, hint }) => {
    if (kept?.id === `${name}-picture`) return kept;
    const place = make("div", { class: "picture-place" });
    const section = make("details", { class: "picture", id: `${name}-picture` },
      make("summary", {}, make("h2", {}, title), make("span", { class: "hint" }, hint)), place);
    section.addEventListener("toggle", () => {
      if (!section.isConnected) return; // another answer has been drawn meanwhile
      onOpened(PICTURES.map((one) => one.name).filter((one) => byId(`${one}-picture`).open));
      if (section.open && isWanting(place)) draw(name, place, context);
    });
    section.open = opened.includes(name);
    return section;
  });
}

/** Whether nothing has been drawn, nor is on its way; or it could not be. */
function isWanting(place) {
  return !place.hasAttribute("aria-busy") && (!place.hasChildNodes() || place.querySelector(":scope > .trouble") !== null);
}

async function draw(name, place, context) {
  place.replaceChildren();
  await guarded(place, context.signal, async () => {
    const { draw: drawPicture } = await import(`./${name}.js`);
    await drawPicture(place, context);
  });
}

/** Runs what draws into a place, and says there what went wrong. */
export async function guarded(place, signal, work) {
  place.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    if (signal?.aborted) return;
    place.querySelectorAll(".trouble").forEach((one) => one.remove());
    place.append(make("div", { class: "trouble", role: "alert" }, make("strong", {}, error.message)));
  } finally {
    if (!signal?.aborted) place.removeAttribute("aria-busy");
  }
}

/**
 * What draws into a place as often as it is called, where each call ends the one before: an answer that comes late is
 * never drawn over a later one.
 */
export function newestOnly(place, signal, work) {
  let call = new AbortController();
  signal.addEventListener("abort", () => call.abort());
  return () => {
    call.abort();
    call = new AbortController();
    const mine = call.signal;
    return guarded(place, mine, () => work(mine));
  };
}

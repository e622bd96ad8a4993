// A text's tokens, shown below its field while one types.

import { make } from "../report/elements.js";
import { ask } from "./api.js";

const PAUSE_MILLISECONDS = 200;
const SHOWN = 400;
const waiting = new WeakMap(); // by field: how to give up the call in progress

/** Tokens as small boxes, ids in their titles. */
export function tokenBoxes(tokens) {
  const boxes = tokens.slice(0, SHOWN).map(({ id, text, quoted, isSpecial }) =>
    make("code", { class: isSpecial ? "box special" : "box", title: `${quoted}, token ${id}` }, text));
  return tokens.length > SHOWN ? [...boxes, ` and ${tokens.length - SHOWN} more`] : boxes;
}

/** Shows the tokens of a text once typing pauses: all of a prompt, or how a target is cut. */
export function showTokens(field, place, draw, addBos) {
  waiting.get(field)?.abort();
  const call = new AbortController();
  waiting.set(field, call);
  if (!field.value) {
    place.replaceChildren();
    return;
  }
  setTimeout(async () => {
    if (call.signal.aborted) return;
    try {
      const answer = await ask("tokens", { text: field.value, addBos }, call.signal);
      place.replaceChildren(...draw(answer));
      letScroll(place);
    } catch (error) {
      if (!call.signal.aborted) place.replaceChildren(error.message);
    }
  }, PAUSE_MILLISECONDS);
}

/** What is longer than its place is reached with Tab, so that the arrow keys can move it. */
function letScroll(place) {
  const isLonger = getComputedStyle(place).overflowY === "auto" && place.scrollHeight > place.clientHeight;
  if (isLonger) place.setAttribute("tabindex", "0");
  else place.removeAttribute("tabindex");
}

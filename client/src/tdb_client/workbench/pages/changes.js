// What is done to the model, as a row of chips that can be taken back.

import { byId, make } from "../report/elements.js";
import { tidy, withoutAll, withoutChange, withoutKept } from "./questions.js";

const SHOWN_KEPT = 40;

function chip(text, kind, title, onRemove) {
  return make("li", { class: `chip ${kind}` }, make("code", {}, text),
    make("button", { type: "button", "aria-label": title, title, onclick: onRemove }, "×"));
}

/**
 * @param question that is asked or will be
 * @param isAsked whether its answer is shown, or on its way
 * @param onAsk called with the question that is left when a chip is taken back
 */
export function drawChanges(question, isAsked, onAsk) {
  const { changes = [], onlyThese, trace, downstream } = question;
  const chips = [];
  if (trace) chips.push(chip(`trace ${trace}`, "trace", `no trace of ${trace}`, () => onAsk(tidy({ ...question, trace: null, downstream: null }))));
  if (downstream) chips.push(chip(`downstream ${downstream}`, "trace", `not towards ${downstream}`, () => onAsk(tidy({ ...question, downstream: null }))));
  for (const one of changes) {
    chips.push(chip(/[=*+]/.test(one) ? one : `${one} = 0`, "change", `take back ${one}`, () => onAsk(withoutChange(question, one))));
  }
  if (onlyThese) {
    chips.push(make("li", { class: "chips-title" }, `keep only ${onlyThese.length}:`));
    for (const one of onlyThese.slice(0, SHOWN_KEPT)) {
      chips.push(chip(one, "kept", `do not keep ${one}`, () => onAsk(withoutKept(question, one))));
    }
    if (onlyThese.length > SHOWN_KEPT) chips.push(make("li", {}, `and ${onlyThese.length - SHOWN_KEPT} more`));
  }
  byId("changes").replaceChildren(...(chips.length ? [
    make("ul", {}, chips),
    isAsked ? [] : make("button", { type: "button", class: "primary", id: "run-changes", onclick: () => onAsk(question) }, "Run with these"),
    make("button", { type: "button", class: "link", id: "all-back", onclick: () => onAsk(withoutAll(question)) }, "all back"),
  ].flat() : []));
}

// Colours that the first token does not set. It sees nothing but itself, and models use it as a place to look at when there
// is nothing to see: what is written there can be a hundred times all else, which would be left without colour.

import { make } from "../report/elements.js";
import { largest, number } from "../report/numbers.js";

/** The largest magnitude in rows of numbers by token, but for the first token's where the others have any. */
export function largestOfOthers(rows) {
  const others = rows.flatMap((values) => values.slice(1));
  return largest(others.some(Boolean) ? others : rows.flat());
}

/** Marks an element whose number is beyond the deepest colour. */
export function markBeyond(element, value, most) {
  element.classList.toggle("beyond", Math.abs(value ?? 0) > most);
  return element;
}

/** What a legend says where some numbers are beyond the deepest colour; nothing where none is. */
export function beyondNote(values, most) {
  const highest = largest(values);
  return highest > most ? [make("span", {}, make("span", { class: "beyond" }, "underlined"),
    `: beyond, up to ${number(highest)}, as the first token does not set the scale`)] : [];
}

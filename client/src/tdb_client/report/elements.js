// Making elements. Text only ever becomes a text node, whatever it looks like.

import { colour, number } from "./numbers.js";

/** An element with attributes and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity));
  return element;
}

/** A link to a page elsewhere, which is told nothing of this one. An address that leads to no page leads nowhere. */
export function pageLink(address, text, attributes = {}) {
  if (!/^https?:\/\//i.test(address)) return make("span", {}, text);
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer", ...attributes }, text);
}

export const byId = (id) => document.getElementById(id);

/** A cell with a number on its colour. */
export function heatCell(value, most, text, attributes = {}) {
  const cell = make("td", attributes, text);
  cell.style.backgroundColor = colour(value, most);
  if (Math.abs(value ?? 0) < most / 50) cell.classList.add("faint");
  return cell;
}

/** What the colours mean, from the deepest orange to the deepest blue; from the paper's colour where nothing is below 0. */
export function legend(place, most, [low, high], isAboveZero = false) {
  const shares = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1].filter((share) => share >= 0 || !isAboveZero);
  const steps = shares.map((share) => {
    const step = make("i");
    step.style.backgroundColor = colour(share, 1);
    return step;
  });
  place.replaceChildren(
    make("span", {}, `${low} ${number(shares[0] * most)}`),
    make("span", { class: "steps", "aria-hidden": "true" }, steps),
    make("span", {}, `${number(most, true)} ${high}`),
  );
}

/** Buttons of which one is pressed in, as radio buttons. */
export function choice(fieldset, name, options, chosen, onChoose) {
  for (const [value, text] of options) {
    const input = make("input", {
      type: "radio", name, value, id: `${name}-${value}`, checked: value === chosen, onchange: () => onChoose(value),
    });
    fieldset.append(input, make("label", { for: `${name}-${value}` }, text));
  }
}

// What is done to the model, as a row of chips that can be taken back.

import { byId, make } from "../report/elements.js";
import { withOnly, withTrace, withoutAll, withoutChange, withoutKept } from "./questions.js";

const SHOWN_KEPT = 40;

function chip(text, kind, title, onRemove) {
  return make("li", { class: `chip ${kind}` }, make("code", {}, text),
    make("button", { type: "button", "aria-label": title, title, onclick: onRemove }, "×"));
}

/** Chips of nodes, the first of many. */
function keptChips(nodes, title, onRemove) {
  const more = nodes.length > SHOWN_KEPT ? [make("li", {}, `and ${nodes.length - SHOWN_KEPT} more`)] : [];
  return [make("li", { class: "chips-title" }, title),
    ...nodes.slice(0, SHOWN_KEPT).map((one) => chip(one, "kept", `do not keep ${one}`, () => onRemove(one))), ...more];
}

/**
 * @param question whose answer is shown, or on its way
 * @param onTakeBack called with a function that makes of a question the one without what is taken back
 */
export function drawChanges({ changes = [], onlyThese, trace, downstream }, onTakeBack) {
  const takeBack = (without) => () => onTakeBack(without);
  const chips = [];
  if (trace) chips.push(chip(`trace ${trace}`, "trace", `no trace of ${trace}`, takeBack((question) => withTrace(question, null))));
  if (downstream) {
    chips.push(chip(`downstream ${downstream}`, "trace", `not towards ${downstream}`, takeBack((question) => withTrace(question, trace))));
  }
  for (const one of changes) {
    chips.push(chip(/[=*+]/.test(one) ? one : `${one} = 0`, "change", `take back ${one}`,
      takeBack((question) => withoutChange(question, one))));
  }
  if (onlyThese) {
    chips.push(...keptChips(onlyThese, `only ${onlyThese.length} kept:`, (one) => onTakeBack((question) => withoutKept(question, one))));
  }
  byId("changes").replaceChildren(...(chips.length ? [make("ul", {}, chips),
    make("button", { type: "button", class: "link", id: "all-back", onclick: takeBack(withoutAll) }, "all back")] : []));
}

/** Nodes that are to be kept, gathered over several answers; nothing is asked before one says so. */
export class Gathered {
  /** @param onAsk called with a function that makes of a question the one with only these, and those it keeps already */
  constructor(onAsk) {
    Object.assign(this, { onAsk, areMore: false, types: new Map() }); // by node
  }

  /** Shows them beside a question: more of them where it keeps some. */
  show(question) {
    this.areMore = Boolean(question.onlyThese);
    this.draw();
  }

  has(node) { return this.types.has(node); }

  add(node, type) {
    this.types.set(node, type);
    this.draw();
  }

  draw() {
    const nodes = [...this.types.keys()];
    const ask = () => {
      const types = [...this.types.values()];
      this.clear();
      this.onAsk(({ onlyThese = [], nodeTypes = [], ...question }) =>
        withOnly(question, [...new Set([...onlyThese, ...nodes])], [...new Set([...nodeTypes, ...types])]));
    };
    byId("gathered").replaceChildren(...(nodes.length ? [
      make("ul", {}, keptChips(nodes, `gathered to be kept${this.areMore ? " too" : ""}, ${nodes.length}:`, (one) => {
        this.types.delete(one);
        this.draw();
      })),
      make("button", { type: "button", class: "primary", id: "run-gathered", onclick: ask },
        this.areMore ? "Run with these too" : "Run with only these"),
      make("button", { type: "button", class: "link", onclick: () => this.clear() }, "forget them"),
    ] : []));
  }

  clear() {
    this.types.clear();
    this.draw();
  }
}

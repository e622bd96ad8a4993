// The questions of this tab, in the order in which they were asked. The browser's own history goes back and forth
// between them too; the list also leads to those that history forgets.

import { byId, make } from "../report/elements.js";
import { number } from "../report/numbers.js";
import { changeWords, keyOf, objectiveWords } from "./questions.js";

const KEPT = "tdb-trail";
const MOST = 100;

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? [];
  } catch {
    return [];
  }
}

export class Trail {
  /** @param onOpen called with a question that was asked before */
  constructor(onOpen) {
    Object.assign(this, { onOpen, steps: stored(), current: null });
    this.draw();
  }

  /** Marks a question as the one that is shown; a new one is put at the end. Others that were never answered are forgotten. */
  show(question) {
    this.current = keyOf(question);
    this.steps = this.steps.filter((one) => one.values !== null || keyOf(one.question) === this.current);
    if (!this.steps.some((one) => keyOf(one.question) === this.current)) this.steps.push({ question, values: null });
    this.steps = this.steps.slice(-MOST);
    this.draw();
  }

  /** Notes the objective of each run of the question that is shown. */
  note(question, values) {
    const step = this.steps.find((one) => keyOf(one.question) === keyOf(question));
    if (step) step.values = values;
    this.draw();
  }

  draw() {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(this.steps));
    } catch {
      // The session's store is full: the list lives as long as the page.
    }
    const at = this.steps.findIndex((one) => keyOf(one.question) === this.current);
    const step = (question, title, text) => make("button", {
      type: "button", class: "step", disabled: question === undefined, "aria-label": title, title, onclick: () => this.onOpen(question),
    }, text);
    const focused = [...byId("trail").querySelectorAll("button")].indexOf(document.activeElement);
    byId("trail").hidden = this.steps.length < 2;
    byId("trail").replaceChildren(
      step(this.steps[at - 1]?.question, "the question before", "←"), step(this.steps[at + 1]?.question, "the next question", "→"),
      make("ol", {}, this.steps.map(({ question, values }, index) => {
        const words = [objectiveWords(question), changeWords(question)].filter(Boolean).join(" · ");
        const figures = values?.map((one) => number(one)).join(" → ") ?? "…";
        return make("li", {}, make("button", { type: "button", title: question.prompt, "aria-current": index === at ? "step" : null,
          onclick: () => this.onOpen(question) }, make("span", {}, words), make("b", {}, figures)));
      })));
    const current = byId("trail").querySelector("[aria-current]");
    const list = byId("trail").querySelector("ol");
    if (current) list.scrollLeft = current.parentElement.offsetLeft - list.offsetLeft; // the page stays where it is
    const same = byId("trail").querySelectorAll(".step")[focused];
    if (focused >= 0) (same && !same.disabled ? same : current)?.focus({ preventScroll: true });
  }
}

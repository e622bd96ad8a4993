// How far a question has come: a bar, what is known already, and what went wrong.

import { byId, make } from "../report/elements.js";
import { difference, number } from "../report/numbers.js";

/** Says that a question is on its way. */
export function showRunning(isRunning) {
  byId("cancel").hidden = !isRunning;
  byId("answer").setAttribute("aria-busy", String(isRunning));
  byId("answer").classList.toggle("stale", isRunning);
  if (!isRunning) return;
  byId("progress").replaceChildren(make("progress", { "aria-label": "progress" }), make("span", {}, "asked …"),
    make("button", { type: "button", onclick: () => byId("cancel").click() }, "Cancel")); // seen however far one has scrolled
}

/** Draws what a line of the answer says of its progress. */
export function showProgress(line) {
  const [bar, text] = byId("progress").children;
  if (line.event === "started") text.textContent = line.cached ? "known already …" : "computing …";
  if (line.event === "progress") {
    bar.setAttribute("max", line.of);
    bar.setAttribute("value", line.done);
  }
  if (line.event === "values") {
    const values = line.runs.map(({ value }) => value);
    const change = values.length > 1 ? ` (${number(difference(...values), true)})` : "";
    text.textContent = `${line.objective ?? ""} ${values.map((one) => number(one)).join(" → ")}${change} …`;
  }
}

export function showDone(seconds) {
  byId("progress").replaceChildren(make("span", { class: "quiet" }, seconds === null ? "" : `answered in ${seconds.toFixed(seconds < 10 ? 1 : 0)} s`));
}

/** Says that nothing is on its way any more, as somebody wanted. */
export function showCancelled() {
  byId("progress").replaceChildren(make("span", {}, "Cancelled. Run asks again."));
}

/** Says what went wrong. */
export function showTrouble(message, more = []) {
  byId("progress").replaceChildren(make("div", { class: "trouble", role: "alert" },
    make("strong", {}, message), more.map((one) => make("p", {}, one))));
  byId("progress").scrollIntoView({ block: "nearest" });
}

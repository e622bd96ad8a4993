// The likeliest next tokens as bars, before and after an ablation one under the other.

import { byId, make } from "./elements.js";
import { difference, number } from "./numbers.js";
import { RUN_NAMES } from "./state.js";

export function drawLogits(data) {
  const all = data.runs.flatMap((run) => run.logits).filter((one) => one !== null);
  const lowest = Math.min(...all);
  const highest = Math.max(...all);
  const start = lowest >= 0 ? 0 : lowest - 0.04 * (highest - lowest || 1); // a logit's zero means nothing by itself
  const span = highest - start || 1;
  byId("logits-hint").textContent =
    (start === 0 ? "Logits" : `Logits; bars start at ${number(start)}`) +
    (data.runs.length > 1 ? `: ${RUN_NAMES[0]} (outlined), ${RUN_NAMES[1]} (filled) and the change.` : ".");
  byId("logits").replaceChildren(make("tbody", {}, data.logits.map(({ token, role }, row) => {
    const values = data.runs.map((run) => run.logits[row]);
    const bars = values.map((value, index) => {
      const isBefore = index < values.length - 1;
      const bar = make("span", { class: isBefore ? "bar-before" : "bar-after" });
      bar.style.width = value === null ? "0" : `${(100 * (value - start)) / span}%`;
      return bar;
    });
    const change = values.length > 1 ? [make("td", { class: "figure" }, number(difference(...values), true))] : [];
    return make("tr", { class: role ?? "" },
      make("th", { scope: "row" }, make("code", {}, token), role ? make("small", {}, role) : ""),
      make("td", { class: "track" }, bars),
      make("td", { class: "figure" }, values.map((one) => make("div", {}, number(one)))),
      ...change,
    );
  })));
}

// What the residual stream would say after each layer: the likeliest tokens, and the logits that were asked about.

import { heatCell, make } from "../report/elements.js";
import { difference, largest, number } from "../report/numbers.js";
import { RUN_NAMES } from "../report/state.js";
import { ask } from "./api.js";
import { guarded } from "./pictures.js";

const SHOWN_TOP = 5;
const PLACES = [["resid_post_mlp", "after the MLP"], ["resid_post_attn", "after attention"]];

export function draw(place, context) {
  const { question, data, signal } = context;
  const last = data.tokens.length - 1;
  const options = (all, chosen) => all.map(([value, title]) => make("option", { value, selected: value === chosen }, title));
  const token = make("select", { id: "lens-token" }, options(data.tokens.map(({ quoted }, index) => [index, `${index}: ${quoted}`]), last));
  const where = make("select", { id: "lens-place" }, options(PLACES));
  const run = make("select", { id: "lens-run" }, options(data.runs.map((_, index) => [index, RUN_NAMES[index]]), data.runs.length - 1));
  const shown = make("div", {});
  let answer = null;
  const paint = () => answer && shown.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "lens" },
    table(answer.wanted, answer.runs[run.value][where.value])));
  const load = () => guarded(shown, signal, async () => {
    answer = await ask("lens", { question, at: [Number(token.value)] }, signal);
    paint();
  });
  token.addEventListener("change", load);
  [where, run].forEach((one) => one.addEventListener("change", paint));
  place.replaceChildren(make("p", { class: "tools" }, make("label", {}, "read at token ", token), make("label", {}, "place ", where),
    data.runs.length > 1 ? make("label", {}, "show ", run) : []), shown);
  return load();
}

/** A row per layer, the last on top; colours by column, as logits of different tokens have their own sizes. */
function table(wanted, rows) {
  const columns = wanted.map(({ quoted }, index) => ({ title: make("code", {}, quoted), value: (row) => row.at[0].logits[index] }));
  if (wanted.length === 2) {
    columns.push({ title: "difference", isEffect: true, value: ({ at: [{ logits }] }) => difference(logits[1], logits[0]) });
  }
  const most = columns.map(({ value }) => largest(rows.map(value)));
  return make("table", { class: "heat lens" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "layer"), columns.map(({ title }) => make("th", { scope: "col" }, title)),
      make("th", { scope: "col", class: "likeliest" }, "likeliest"))),
    make("tbody", {}, [...rows].reverse().map((row) => make("tr", {},
      make("th", { scope: "row" }, row.layer === null ? "embedding" : `L${row.layer}`),
      columns.map(({ value, isEffect }, index) => heatCell(value(row), most[index], number(value(row), isEffect))),
      make("td", { class: "likeliest" }, row.at[0].top.slice(0, SHOWN_TOP).map(([word, value]) => make("code", { title: number(value) }, word)))))));
}

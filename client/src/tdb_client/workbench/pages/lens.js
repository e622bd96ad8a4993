// What the residual stream would say after each layer: the likeliest tokens, and the logits that were asked about.

import { heatCell, make } from "../report/elements.js";
import { largest, number } from "../report/numbers.js";
import { ask } from "./api.js";
import { guarded } from "./pictures.js";

const SHOWN_TOP = 5;

export function draw(place, context) {
  const { question, data, signal } = context;
  const last = data.tokens.length - 1;
  const token = make("select", { id: "lens-token" }, data.tokens.map(({ quoted }, index) =>
    make("option", { value: index, selected: index === last }, `${index}: ${quoted}`)));
  const shown = make("div", {});
  const load = () => guarded(shown, signal, async () => {
    const answer = await ask("lens", { question, at: [Number(token.value)] }, signal);
    shown.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "lens" }, table(answer)));
  });
  token.addEventListener("change", load);
  place.replaceChildren(make("p", { class: "tools" }, make("label", {}, "read at token ", token)), shown);
  return load();
}

function table({ tokens, rows }) {
  const columns = tokens.map((_, index) => largest(rows.map(({ logits }) => logits[index])));
  return make("table", { class: "heat lens" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "after"), tokens.map((one) => make("th", { scope: "col" }, make("code", {}, one))),
      tokens.length === 2 ? make("th", { scope: "col" }, "difference") : [], make("th", { scope: "col", class: "likeliest" }, "likeliest"))),
    make("tbody", {}, [...rows].reverse().map(({ name, logits, top }) => make("tr", {}, make("th", { scope: "row" }, name),
      logits.map((value, index) => heatCell(value, columns[index], number(value))),
      tokens.length === 2 ? heatCell(logits[0] - logits[1], largest(rows.map((row) => row.logits[0] - row.logits[1])), number(logits[0] - logits[1], true)) : [],
      make("td", { class: "likeliest" }, top.slice(0, SHOWN_TOP).map(([word, value]) => make("code", { title: number(value) }, word)))))));
}

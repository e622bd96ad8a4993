// What the residual stream would say after each layer: the likeliest tokens, and the logits that were asked about.

import { heatCell, make } from "../report/elements.js";
import { difference, largest, number } from "../report/numbers.js";
import { RUN_NAMES } from "../report/state.js";
import { ask } from "./api.js";
import { newestOnly } from "./pictures.js";

const SHOWN_TOP = 5;
const ALL = "all";
const MOST_TOKENS = 64; // of which all are shown at once
const PLACES = [["resid_post_mlp", "after the MLP"], ["resid_post_attn", "after attention"]];

export function draw(place, context) {
  const { question, data, signal } = context;
  const last = data.tokens.length - 1;
  const options = (all, chosen) => all.map(([value, title]) => make("option", { value, selected: value === chosen }, title));
  const token = make("select", { id: "lens-token" },
    data.tokens.length <= MOST_TOKENS ? make("option", { value: ALL }, "every token") : [],
    options(data.tokens.map(({ quoted }, index) => [index, `${index}: ${quoted}`]), last));
  const where = make("select", { id: "lens-place" }, options(PLACES));
  const run = make("select", { id: "lens-run" }, options(data.runs.map((_, index) => [index, RUN_NAMES[index]]), data.runs.length - 1));
  const shown = make("div", {});
  let answer = null;
  const paint = () => {
    if (answer === null) return;
    const drawn = (answer.at.length > 1 ? grid : table)(answer, answer.runs[run.value][where.value]);
    shown.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "lens" }, drawn));
  };
  const load = newestOnly(shown, signal, async (current) => {
    answer = null;
    shown.replaceChildren();
    const at = token.value === ALL ? data.tokens.map((_, index) => index) : [Number(token.value)];
    answer = await ask("lens", { question, at }, current);
    paint();
  });
  token.addEventListener("change", load);
  [where, run].forEach((one) => one.addEventListener("change", paint));
  place.replaceChildren(make("p", { class: "tools" }, make("label", {}, "read at token ", token), make("label", {}, "place ", where),
    data.runs.length > 1 ? make("label", {}, "show ", run) : []), shown);
  return load();
}

const nameOf = ({ layer }) => (layer === null ? "embedding" : `L${layer}`);

/** What was asked about at a token: the difference of two logits, or the first of several. */
function asked(logits) {
  return logits.length === 2 ? difference(logits[1], logits[0]) : logits[0] ?? null;
}

/** Layer by token, the last layer on top: the likeliest token, on the colour of what was asked about. */
function grid({ tokens, at, wanted }, rows) {
  const most = largest(rows.flatMap((row) => row.at.map(({ logits }) => asked(logits))));
  const meant = wanted.length === 2 ? `${wanted[0].quoted} − ${wanted[1].quoted}` : wanted[0]?.quoted ?? "";
  return make("table", { class: "grid lens-grid" },
    make("caption", {}, wanted.length ? `likeliest token, on the colour of ${meant}` : "likeliest token"),
    make("thead", {}, make("tr", {}, make("td", {}), at.map((token) => make("th", { scope: "col" }, make("code", {}, tokens[token].quoted))))),
    make("tbody", {}, [...rows].reverse().map((row) => make("tr", {}, make("th", { scope: "row" }, nameOf(row)),
      row.at.map(({ top, logits }, index) => {
        const likeliest = top.slice(0, SHOWN_TOP).map(([word, value]) => `${word} ${number(value)}`).join(", ");
        const place = `${nameOf(row)}, ${tokens[at[index]].quoted} @ ${at[index]}`;
        const title = `${place}: ${likeliest}; ${meant} ${number(asked(logits), true)}`;
        return heatCell(asked(logits), most, top[0]?.[0] ?? "", { title });
      })))));
}

/** A row per layer, the last on top; colours by column, as logits of different tokens have their own sizes. */
function table({ wanted }, rows) {
  const columns = wanted.map(({ quoted }, index) => ({ title: make("code", {}, quoted), value: (row) => row.at[0].logits[index] }));
  if (wanted.length === 2) {
    columns.push({ title: "difference", isEffect: true, value: ({ at: [{ logits }] }) => difference(logits[1], logits[0]) });
  }
  const most = columns.map(({ value }) => largest(rows.map(value)));
  return make("table", { class: "heat lens" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "layer"), columns.map(({ title }) => make("th", { scope: "col" }, title)),
      make("th", { scope: "col", class: "likeliest" }, "likeliest"))),
    make("tbody", {}, [...rows].reverse().map((row) => make("tr", {},
      make("th", { scope: "row" }, nameOf(row)),
      columns.map(({ value, isEffect }, index) => heatCell(value(row), most[index], number(value(row), isEffect))),
      make("td", { class: "likeliest" }, row.at[0].top.slice(0, SHOWN_TOP).map(([word, value]) => make("code", { title: number(value) }, word)))))));
}

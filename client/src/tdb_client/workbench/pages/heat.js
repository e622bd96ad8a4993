// Layer by token: what all heads and the MLP of a layer write at each token, however little each does.

import { heatCell, legend, make } from "../report/elements.js";
import { difference, number, shortNumber } from "../report/numbers.js";
import { CHANGE, RUN_NAMES, SCALARS } from "../report/state.js";
import { ask } from "./api.js";
import { beyondNote, largestOfOthers, markBeyond } from "./scale.js";

const MOST_TOKENS = 60;
const NUMBERS = ["act_times_grad", "direct_effect", "write_norm"]; // those that add up; the first says something of most tokens
const PARTS = [["all", "heads and MLP"], ["heads", "heads"], ["mlps", "MLP"]];

export async function draw(place, { question, data, signal }) {
  const options = (all, chosen) => all.map(([value, title]) => make("option", { value, selected: value === chosen }, title));
  const pick = make("select", { id: "heat-number" }, options(NUMBERS.map((name) => [name, SCALARS[name].title])));
  const part = make("select", { id: "heat-part" }, options(PARTS));
  const runs = data.runs.map((_, index) => [String(index), RUN_NAMES[index]]);
  const run = make("select", { id: "heat-run" }, options(runs.length > 1 ? [...runs, [CHANGE, CHANGE]] : runs, CHANGE));
  const table = make("table", { class: "grid heat-grid numbered" });
  const key = make("div", { class: "legend" });
  const left = make("p", { class: "hint" });
  const shown = make("div", {});
  let answer = null;
  const paint = () => {
    if (answer === null) return;
    fillTable({ table, key, left }, answer, { scalar: pick.value, part: part.value, run: run.value });
    shown.replaceChildren(key, left, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "layer by token" }, table));
  };
  [pick, part, run].forEach((one) => one.addEventListener("change", paint));
  place.replaceChildren(
    make("p", { class: "tools" }, make("label", {}, "number ", pick), make("label", {}, "of ", part), runs.length > 1 ? make("label", {}, "show ", run) : []),
    make("p", { class: "hint" }, "Whole heads and whole MLPs, all of a layer together, by the token where they write: not only the nodes listed."), shown);
  answer = await ask("layers", { question }, signal);
  paint();
}

/** The rows from the last layer down to the embedding, each with a number for each token. */
function rowsOf(sums, part) {
  const layers = sums.heads.map((heads, layer) => [`L${layer}`, part === "all"
    ? heads.map((one, token) => (one === null || sums.mlps[layer][token] === null ? null : one + sums.mlps[layer][token]))
    : sums[part][layer]]);
  return [["embedding", sums.embedding], ...layers].reverse();
}

function fillTable({ table, key, left }, { tokens, runs }, { scalar, part, run }) {
  const [before, after] = run === CHANGE ? runs : [runs[Number(run)]];
  let rows = rowsOf(before[scalar], part);
  if (after) {
    const others = rowsOf(after[scalar], part);
    rows = rows.map(([name, values], row) => [name, values.map((one, token) => difference(one, others[row][1][token]))]);
  }
  const numbers = rows.map(([, values]) => values);
  const most = largestOfOthers(numbers);
  const columns = strongest(numbers, tokens.length);
  const cell = (name, value, token) => markBeyond(heatCell(value, most, shortNumber(value),
    { title: `${name}, ${tokens[token].quoted} @ ${token}: ${number(value, true)}` }), value, most);
  table.replaceChildren(
    make("thead", {}, make("tr", {}, make("td", {}), columns.map((token) =>
      make("th", { scope: "col" }, make("span", {}, make("code", {}, tokens[token].quoted), ` @ ${token}`))))),
    make("tbody", {}, rows.map(([name, values]) => make("tr", {}, make("th", { scope: "row" }, name),
      columns.map((token) => cell(name, values[token], token))))));
  left.textContent = columns.length === tokens.length ? ""
    : `${columns.length} of ${tokens.length} tokens, those with the largest numbers.`;
  const { isEffect, title } = SCALARS[scalar];
  const ends = isEffect ? ["lowers", "raises"] : run === CHANGE ? ["less", "more"] : ["none", title];
  legend(key, most, ends, !isEffect && run !== CHANGE);
  key.append(...beyondNote(numbers.flat(), most));
}

/** The tokens to show: all, or of a long prompt those with the largest numbers, and none without any, in their order. */
function strongest(numbers, nTokens) {
  const all = Array.from({ length: nTokens }, (_, token) => token);
  if (nTokens <= MOST_TOKENS) return all;
  const size = all.map((token) => numbers.reduce((most, values) => Math.max(most, Math.abs(values[token] ?? 0)), 0));
  return all.filter((token) => size[token]).sort((a, b) => size[b] - size[a]).slice(0, MOST_TOKENS).sort((a, b) => a - b);
}

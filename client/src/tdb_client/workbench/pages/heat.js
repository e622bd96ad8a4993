// Layer by token: what all heads and the MLP of a layer write at each token, however little each does.

import { heatCell, legend, make } from "../report/elements.js";
import { difference, largest, number, shortNumber } from "../report/numbers.js";
import { CHANGE, RUN_NAMES, SCALARS } from "../report/state.js";
import { ask } from "./api.js";
import { newestOnly } from "./pictures.js";

const MOST_TOKENS = 200;
const NUMBERS = ["direct_effect", "act_times_grad", "write_norm"]; // those that add up
const PARTS = [["all", "heads and MLP"], ["heads", "heads"], ["mlps", "MLP"]];

export function draw(place, { question, data, signal }) {
  const options = (all, chosen) => all.map(([value, title]) => make("option", { value, selected: value === chosen }, title));
  const pick = make("select", { id: "heat-number" }, options(NUMBERS.map((name) => [name, SCALARS[name].title])));
  const part = make("select", { id: "heat-part" }, options(PARTS));
  const runs = data.runs.map((_, index) => [String(index), RUN_NAMES[index]]);
  const run = make("select", { id: "heat-run" }, options(runs.length > 1 ? [...runs, [CHANGE, CHANGE]] : runs, CHANGE));
  const table = make("table", { class: "grid heat-grid numbered" });
  const key = make("div", { class: "legend" });
  const shown = make("div", {});
  let answer = null;
  const paint = () => {
    if (answer === null) return;
    fillTable(table, key, answer, { scalar: pick.value, part: part.value, run: run.value });
    shown.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "layer by token" }, table), key);
  };
  [pick, part, run].forEach((one) => one.addEventListener("change", paint));
  place.replaceChildren(
    make("p", { class: "tools" }, make("label", {}, "number ", pick), make("label", {}, "of ", part), runs.length > 1 ? make("label", {}, "show ", run) : []),
    make("p", { class: "hint" }, "Whole heads and whole MLPs, all of a layer together, by the token where they write: not only the nodes listed."), shown);
  return newestOnly(shown, signal, async (current) => {
    answer = await ask("layers", { question }, current);
    paint();
  })();
}

/** The rows from the last layer down to the embedding, each with a number for each token. */
function rowsOf(sums, part) {
  const layers = sums.heads.map((heads, layer) => [`L${layer}`, part === "all"
    ? heads.map((one, token) => (one === null || sums.mlps[layer][token] === null ? null : one + sums.mlps[layer][token]))
    : sums[part][layer]]);
  return [["embedding", sums.embedding], ...layers].reverse();
}

function fillTable(table, key, { tokens, runs }, { scalar, part, run }) {
  const [before, after] = run === CHANGE ? runs : [runs[Number(run)]];
  let rows = rowsOf(before[scalar], part);
  if (after) {
    const others = rowsOf(after[scalar], part);
    rows = rows.map(([name, values], row) => [name, values.map((one, token) => difference(one, others[row][1][token]))]);
  }
  const most = largest(rows.flatMap(([, values]) => values));
  const columns = strongest(rows, tokens.length);
  table.replaceChildren(
    make("thead", {}, make("tr", {}, make("td", {}), columns.map((token) =>
      make("th", { scope: "col" }, make("span", {}, make("code", {}, tokens[token].quoted)))))),
    make("tbody", {}, rows.map(([name, values]) => make("tr", {}, make("th", { scope: "row" }, name), columns.map((token) =>
      heatCell(values[token], most, shortNumber(values[token]), { title: `${name}, ${tokens[token].quoted} @ ${token}: ${number(values[token], true)}` }))))));
  const isEffect = run === CHANGE || SCALARS[scalar].isEffect;
  legend(key, most, isEffect ? ["lowers", "raises"] : ["negative", "positive"]);
}

/** The tokens to show: all, or of a long prompt those with the largest numbers, in their order. */
function strongest(rows, nTokens) {
  const all = Array.from({ length: nTokens }, (_, token) => token);
  if (nTokens <= MOST_TOKENS) return all;
  const size = all.map((token) => largest(rows.map(([, values]) => values[token])));
  return all.sort((a, b) => size[b] - size[a]).slice(0, MOST_TOKENS).sort((a, b) => a - b);
}

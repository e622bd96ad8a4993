// Layer by token: what the listed nodes add up to at each place.

import { heatCell, legend, make } from "../report/elements.js";
import { difference, largest, number, shortNumber } from "../report/numbers.js";
import { CHANGE, RUN_NAMES, SCALARS } from "../report/state.js";

const MOST_TOKENS = 200;
const EMBEDDING = -1;

export function draw(place, { data }) {
  const pick = make("select", { id: "heat-number" }, Object.entries(SCALARS).map(([name, { title }]) => make("option", { value: name }, title)));
  const run = make("select", { id: "heat-run" }, data.runs.map((_, index) => make("option", { value: index }, RUN_NAMES[index])),
    data.runs.length > 1 ? make("option", { value: CHANGE, selected: true }, CHANGE) : []);
  const table = make("table", { class: "grid heat-grid" });
  const key = make("div", { class: "legend" });
  const fill = () => fillTable(table, key, data, pick.value, run.value);
  pick.addEventListener("change", fill);
  run.addEventListener("change", fill);
  place.replaceChildren(
    make("p", { class: "tools" }, make("label", {}, "number ", pick), " ", data.runs.length > 1 ? make("label", {}, "show ", run) : []),
    make("p", { class: "hint" }, `Sums over the ${data.nodes.length} nodes that this answer lists, by layer and by the token where they ` +
      "write. What is not listed is not in it: ask for more with k."),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "layer by token" }, table), key);
  fill();
}

function sumsByPlace(data, scalar, run) {
  const sums = new Map();
  const value = (row) => {
    const values = data.runs.map((one) => one.scalars[scalar][row]);
    return run === CHANGE ? difference(values[0], values[1]) : values[Number(run)];
  };
  data.nodes.forEach(({ layer, token }, row) => {
    const at = `${layer ?? EMBEDDING} ${token}`;
    const one = value(row);
    if (one !== null) sums.set(at, (sums.get(at) ?? 0) + one); // else not known in this run, or not in both
  });
  return sums;
}

function fillTable(table, key, data, scalar, run) {
  const sums = sumsByPlace(data, scalar, run);
  const layers = [...new Set(data.nodes.map(({ layer }) => layer ?? EMBEDDING))].sort((a, b) => b - a);
  const used = [...new Set(data.nodes.map(({ token }) => token))].sort((a, b) => a - b);
  const tokens = data.tokens.length <= MOST_TOKENS ? data.tokens.map((_, token) => token) : used.slice(-MOST_TOKENS);
  const most = largest([...sums.values()]);
  table.replaceChildren(
    make("thead", {}, make("tr", {}, make("td", {}), tokens.map((token) =>
      make("th", { scope: "col" }, make("span", {}, make("code", {}, data.tokens[token].quoted)))))),
    make("tbody", {}, layers.map((layer) => {
      const name = layer === EMBEDDING ? "embedding" : `L${layer}`;
      return make("tr", {}, make("th", { scope: "row" }, name), tokens.map((token) => {
        const value = sums.get(`${layer} ${token}`);
        const title = `${name}, ${data.tokens[token].quoted} @ ${token}: ${value === undefined ? "none listed" : number(value, true)}`;
        return value === undefined ? make("td", { title }) : heatCell(value, most, shortNumber(value), { title });
      }));
    })));
  table.classList.add("numbered");
  const isEffect = run === CHANGE || SCALARS[scalar].isEffect;
  legend(key, most, isEffect ? ["lowers", "raises"] : ["negative", "positive"]);
}

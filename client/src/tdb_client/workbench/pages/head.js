// All that one head attends to, with what it adds up to on both axes: per token that attends, and per token read.

import { heatCell, legend, make } from "../report/elements.js";
import { colour, difference, largest, number, shortNumber, sum } from "../report/numbers.js";
import { CHANGE, RUN_NAMES } from "../report/state.js";
import { ask } from "./api.js";
import { newestOnly } from "./pictures.js";

const MOST_CELLS_IN_TABLE = 40; // on each side; longer prompts are painted
const MAX_NUMBERED = 24;
const PAINTED_PIXELS = 720;
const STRONGEST = 8;
const KINDS = [["pattern", "attention"], ["writeNorm", "size of what is written"]];

export function draw(place, context) {
  const { model, data, signal, question } = context;
  const first = data.nodes.find(({ type }) => type === "attention_head") ?? { layer: 0, index: 0 };
  const field = (name, value, most) => make("input", { type: "number", id: `head-${name}`, min: "0", max: most - 1, value });
  const layer = field("layer", first.layer, model.nLayers);
  const head = field("index", first.index, model.nHeads);
  const kind = make("select", { id: "head-kind" }, KINDS.map(([value, title]) => make("option", { value }, title)));
  const runs = data.runs.length > 1 ? [...RUN_NAMES, CHANGE] : RUN_NAMES.slice(0, 1);
  const run = make("select", { id: "head-run" }, runs.map((one) => make("option", { value: one }, one)));
  const shown = make("div", { class: "head-picture" });
  let answer = null;
  const paint = () => answer && drawPattern(shown, answer, kind.value, run.value, context);
  const load = newestOnly(shown, signal, async (current) => {
    answer = null;
    shown.replaceChildren();
    const written = ({ value }) => (value === "" ? null : Number(value));
    answer = await ask("attention", { question, layer: written(layer), head: written(head) }, current);
    paint();
  });
  [layer, head].forEach((one) => one.addEventListener("change", load));
  [kind, run].forEach((one) => one.addEventListener("change", paint));
  place.replaceChildren(make("p", { class: "tools" }, make("label", {}, "layer ", layer), make("label", {}, "head ", head),
    make("label", {}, "values ", kind), data.runs.length > 1 ? make("label", {}, "show ", run) : []), shown);
  return load();
}

function valuesOf(answer, kind, run) {
  const [before, after] = answer.runs.map((one) => one[kind]);
  if (run === CHANGE) return before.map((row, from) => row.map((value, to) => difference(value, after[from][to])));
  return run === RUN_NAMES[1] ? after : before;
}

function drawPattern(place, answer, kind, run, context) {
  const name = `L${answer.layer} head ${answer.head}`;
  const values = valuesOf(answer, kind, run); // of each token, a row up to itself
  const rowSums = values.map(sum);
  const columnSums = values.map((_, to) => sum(values.slice(to).map((row) => row[to])));
  const isShort = values.length <= MOST_CELLS_IN_TABLE;
  const key = make("div", { class: "legend" });
  const most = largest(values.flat());
  place.replaceChildren(
    make("p", { class: "hint" }, "Rows attend to columns. The last column is what each token has in all, the last row what all have from it."),
    isShort ? make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
      table(values, rowSums, columnSums, most, context.data.tokens, name))
      : painted(values, rowSums, columnSums, most, context.data.tokens, name),
    key, strongest(values, context, name));
  legend(key, most, run === CHANGE ? ["less", "more"] : ["none", KINDS.find(([one]) => one === kind)[1]], run !== CHANGE);
}

function table(values, rowSums, columnSums, most, tokens, name) {
  const isNumbered = values.length <= MAX_NUMBERED;
  const quoted = (token) => make("code", {}, tokens[token].quoted);
  const sums = (all, token) => heatCell(all[token], largest(all), shortNumber(all[token]), { class: "sum", title: number(all[token]) });
  return make("table", { class: isNumbered ? "grid numbered with-sums" : "grid with-sums" },
    make("caption", {}, name),
    make("thead", {}, make("tr", {}, make("td", {}), values.map((_, token) => make("th", { scope: "col" }, make("span", {}, quoted(token)))),
      make("th", { scope: "col" }, make("span", {}, "in all")))),
    make("tbody", {}, values.map((row, from) => make("tr", {}, make("th", { scope: "row" }, quoted(from)),
      values.map((_, to) => {
        if (to > from) return make("td", { class: "later" });
        return heatCell(row[to], most, isNumbered ? shortNumber(row[to]) : "",
          { title: `${tokens[from].quoted} @ ${from} → ${tokens[to].quoted} @ ${to}: ${number(row[to])}` });
      }), sums(rowSums, from)))),
    make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, "from it"), values.map((_, to) => sums(columnSums, to)), make("td", {}))));
}

/** Long prompts as one picture, whose cells are read with the pointer or the arrow keys. */
function painted(values, rowSums, columnSums, most, tokens, name) {
  const n = values.length;
  const canvas = make("canvas", { width: n, height: n, tabindex: "0", role: "img", "aria-label": `${name}: use the arrow keys to read cells` });
  const context = canvas.getContext("2d");
  values.forEach((row, from) => row.forEach((value, to) => {
    context.fillStyle = colour(value, most) || "transparent";
    context.fillRect(to, from, 1, 1);
  }));
  canvas.style.width = `${PAINTED_PIXELS}px`;
  const said = make("p", { class: "hint", "aria-live": "polite" }, "Point at a cell, or use the arrow keys.");
  let at = [n - 1, 0];
  const say = (from, to) => {
    at = [Math.max(0, Math.min(n - 1, from)), Math.max(0, Math.min(n - 1, to))];
    const [row, column] = at;
    said.textContent = `${tokens[row].quoted} @ ${row} → ${tokens[column].quoted} @ ${column}: ${number(values[row][column] ?? null)}` +
      ` · in all ${number(rowSums[row])} at ${tokens[row].quoted} · from ${tokens[column].quoted} ${number(columnSums[column])}`;
  };
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) =>
    say(Math.floor((offsetY / canvas.clientHeight) * n), Math.floor((offsetX / canvas.clientWidth) * n)));
  canvas.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    say(at[0] + down, at[1] + right);
  });
  return make("div", {}, make("div", { class: "scroll painted" }, canvas), said);
}

function strongest(values, { data, question, page }, name) {
  const pairs = values.flatMap((row, from) => row.map((value, to) => [Math.abs(value), from, to]));
  pairs.sort(([a], [b]) => b - a);
  const [layer, index] = name.match(/\d+/g).map(Number);
  return make("p", { class: "tools strongest" }, make("span", { class: "quiet" }, "strongest: "), pairs.slice(0, STRONGEST).map(([, from, to]) => {
    const node = { type: "attention_head", component: name, layer, index, token: from, attended_to: to, spelling: `${name} @ ${from} -> ${to}` };
    return make("button", { type: "button", "aria-haspopup": "menu", onclick: (event) => page.openNode(node, event.currentTarget) },
      `${data.tokens[from].quoted} → ${data.tokens[to].quoted} ${number(values[from][to])}`);
  }));
}

// The search for a circuit: faithfulness against size, while it goes on, and the nodes that it ends with.

import { make } from "../report/elements.js";
import { number } from "../report/numbers.js";
import { lines } from "./api.js";
import { guarded } from "./pictures.js";
import { ofWholeModel, tidy } from "./questions.js";
import { svg } from "./svg.js";

const WIDTH = 760;
const HEIGHT = 280;
const MARGIN = 44;
const TOP = 1.2; // of the picture, unless something is higher
const WANTED = 0.85;
const MOST_CALLS = 64;

/** What so many nodes keep; a share that rounds to 0 is 0. */
function keeps(size, share) {
  const shown = share !== null && Math.abs(share) < 0.0005 ? 0 : share;
  return `${size} ${size === 1 ? "node keeps" : "nodes keep"} ${number(shown)}`;
}

export function draw(place, context) {
  const wanted = make("input", { type: "number", id: "circuit-wanted", min: "0", max: "1", step: "0.05", value: WANTED });
  const atMost = make("input", { type: "number", id: "circuit-most", min: "1", value: MOST_CALLS });
  const start = make("button", { type: "button", class: "primary", id: "circuit-search" }, "Search");
  const stop = make("button", { type: "button", hidden: true, id: "circuit-stop" }, "Stop");
  const said = make("span", { class: "quiet", role: "status" });
  const shown = make("div", {});
  place.replaceChildren(
    make("p", { class: "hint" }, "Others are set to what they are in the baseline, or to 0 without one. " +
      "Many circuits are measured: this takes from seconds to minutes."),
    make("p", { class: "tools" }, make("label", {}, "faithfulness of at least ", wanted),
      make("label", {}, "calls at most ", atMost), start, stop, said),
    shown);
  start.addEventListener("click", () => {
    const call = new AbortController();
    context.signal.addEventListener("abort", () => call.abort());
    stop.onclick = () => call.abort();
    start.hidden = true;
    stop.hidden = false;
    const asked = { question: ofWholeModel(context.question), atMost: Number(atMost.value), faithfulness: Number(wanted.value) };
    guarded(shown, call.signal, () => search(asked, { shown, said }, context, call.signal))
      .finally(() => {
        start.hidden = false;
        stop.hidden = true;
        shown.removeAttribute("aria-busy");
        if (call.signal.aborted) said.textContent = "stopped";
      });
  });
}

async function search(asked, { shown, said }, context, signal) {
  const best = new Map(); // by size, the faithfulness nearest to 1
  let found = null;
  shown.replaceChildren();
  for await (const line of lines("circuit", asked, signal)) {
    for (const [size, value] of line.points ?? line.path.map((one) => [one.size, one.faithfulness])) {
      if (value === null) continue; // where prompt and baseline have the same objective
      if (!best.has(size) || Math.abs(1 - value) < Math.abs(1 - best.get(size))) best.set(size, value);
    }
    if (line.event === "circuit") found = line;
    said.textContent = found ? `${found.nMeasured} circuits measured` : `${line.calls} calls: ${keeps(line.size, line.faithfulness)}`;
    shown.replaceChildren(curve([...best], asked.faithfulness, found), ...(found ? [result(found, context)] : []));
  }
}

function result(found, { page, question }) {
  const keep = () => page.ask(tidy({ ...question, changes: [], onlyThese: found.nodes, nodeTypes: null }));
  return make("div", {},
    make("p", {},
      make("strong", {}, `${found.nodes.length} of ${found.nComponents} heads and MLPs keep ${number(found.faithfulness)} of the objective. `),
      make("button", { type: "button", class: "primary", id: "circuit-keep", onclick: keep }, "Keep only these")),
    make("ul", { class: "node-list" }, found.nodes.map((one) => make("li", {}, make("code", {}, one)))));
}

/** The best circuit of each size, as size and faithfulness; sizes on a logarithmic axis. */
function curve(steps, wanted, found) {
  const sorted = steps.map(([size, value]) => ({ size, value })).sort((a, b) => a.size - b.size);
  const largest = Math.log(Math.max(2, ...sorted.map(({ size }) => size)));
  const x = (size) => MARGIN + ((WIDTH - 2 * MARGIN) * Math.log(Math.max(size, 1))) / largest;
  const top = Math.max(TOP, ...sorted.map(({ value }) => value));
  const y = (value) => HEIGHT - MARGIN - ((HEIGHT - 2 * MARGIN) * Math.max(value, 0)) / top;
  const level = (value, kind) => [svg("line", { class: kind, x1: MARGIN, x2: WIDTH - MARGIN, y1: y(value), y2: y(value) }),
    svg("text", { x: 6, y: y(value) + 4 }, String(value))];
  const ticks = [1, 3, 10, 30, 100, 300, 1000].filter((size) => Math.log(size) <= largest);
  const words = found ? keeps(found.nodes.length, found.faithfulness) : "searching";
  return svg("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `faithfulness against size: ${words}` },
    level(0, "axis"), level(1, "axis"), level(wanted, "wanted"),
    ticks.map((size) => svg("text", { x: x(size), y: HEIGHT - 22, "text-anchor": "middle" }, String(size))),
    svg("text", { x: WIDTH / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "nodes"),
    svg("polyline", { points: sorted.map((one) => `${x(one.size)},${y(one.value)}`).join(" ") }),
    sorted.map((one) => svg("circle", { cx: x(one.size), cy: y(one.value), r: one.size === found?.nodes.length ? 6 : 3,
      class: one.size === found?.nodes.length ? "best" : "" }, svg("title", {}, keeps(one.size, one.value)))));
}

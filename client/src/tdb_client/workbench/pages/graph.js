// Edges as a graph: the embedding at the bottom, layers upwards, the logits on top. The same edges stand beside it as a
// list, for whoever does not point.

import { make } from "../report/elements.js";
import { number } from "../report/numbers.js";
import { ask } from "./api.js";
import { ofWholeModel } from "./questions.js";
import { svg } from "./svg.js";
import { ZoomedView } from "./zoom.js";

const TOP_K = 200;
const SHOWN = 60;
const ROW_PIXELS = 32;
const WIDTH = 1000;
const MLP_AT = 0.88; // of the width, so that a layer's MLP always stands in the same column
const NEAR = 40; // pixels across, below which an edge is bent aside so as not to run through what is between

export async function draw(place, context) {
  const { question, model, signal } = context;
  const topK = Math.min(TOP_K, model.limits.k);
  drawGraph(place, await ask("edges", { question: ofWholeModel(question), topK }, signal), context);
}

function drawGraph(place, { edges }, context) {
  const strength = make("input", { type: "range", id: "graph-shown", min: "1", max: edges.length, value: Math.min(SHOWN, edges.length) });
  const said = make("output", { for: "graph-shown" });
  const list = make("ol", { class: "edge-list", "aria-label": "edges, the strongest first" });
  const sorted = [...edges].sort((a, b) => Math.abs(b.score) - Math.abs(a.score));
  const view = new ZoomedView();
  const picture = make("div", { class: "graph-picture" }, view.element);
  const fill = () => {
    const shown = sorted.slice(0, Number(strength.value));
    said.textContent = `${shown.length} of ${edges.length} edges, from ${number(Math.abs(shown.at(-1).score))}`;
    const graph = graphOf(shown, context, (edge) => mark(edge));
    view.show(graph.element, graph.width, graph.height);
    list.replaceChildren(...shown.map((edge) => make("li", {},
      make("button", { type: "button", onclick: () => mark(edge), onfocus: () => mark(edge) },
        make("span", {}, words(edge)), make("b", {}, number(edge.score, true))))));
    const mark = (edge) => {
      const at = shown.indexOf(edge);
      place.querySelectorAll(".marked").forEach((one) => one.classList.remove("marked"));
      picture.querySelectorAll(".edge")[at]?.classList.add("marked");
      list.children[at]?.classList.add("marked");
      list.children[at]?.scrollIntoView({ block: "nearest" });
    };
  };
  strength.addEventListener("input", fill);
  place.replaceChildren(
    make("p", { class: "hint" }, "An edge says how much the objective would fall if its reader alone saw of its writer " +
      "what that writes in the baseline, to first order, whatever backward rule is chosen above. Blue raises, orange lowers."),
    make("p", { class: "tools" }, make("label", {}, "strongest ", strength), said, view.buttons()),
    make("div", { class: "graph" }, picture, list));
  fill();
}

function path(x1, y1, x2, y2) {
  const aside = Math.abs(x1 - x2) < NEAR ? 14 + Math.abs(y1 - y2) / 8 : 0;
  const middle = (y1 + y2) / 2;
  return `M${x1} ${y1}C${x1 + aside} ${middle} ${x2 + aside} ${middle} ${x2} ${y2}`;
}

/** What is read, where several things of one component can be. */
const words = ({ from, to, reads }) => `${shorter(from)} → ${shorter(to)}${reads === "query" ? ", its query" : ""}`;
const shorter = (name) => name.replace("whole ", "");

function graphOf(edges, { page }, onEdge) {
  const names = [...new Set(edges.flatMap(({ from, to }) => [from, to]))];
  const layerOf = (name) => (/^L(\d+)/.test(name) ? Number(/^L(\d+)/.exec(name)[1]) : /logit/.test(name) ? Infinity : -1);
  const levels = [...new Set(names.map(layerOf))].sort((a, b) => a - b);
  const isMlp = (name) => name.endsWith(" mlp");
  const rank = (name) => Number(/head (\d+)/.exec(name)?.[1] ?? 0);
  const places = new Map();
  const height = ROW_PIXELS * (levels.length + 0.5);
  levels.forEach((layer, level) => {
    const y = height - ROW_PIXELS * (level + 0.6);
    const row = names.filter((name) => layerOf(name) === layer).sort((a, b) => rank(a) - rank(b));
    const others = row.filter((name) => !isMlp(name));
    others.forEach((name, index) => places.set(name, [60 + ((WIDTH * MLP_AT - 120) * (index + 0.5)) / others.length, y]));
    row.filter(isMlp).forEach((name) => places.set(name, [WIDTH * MLP_AT, y]));
  });
  const most = Math.max(...edges.map(({ score }) => Math.abs(score)), 1e-9);
  const lines = edges.map((edge) => {
    const [[x1, y1], [x2, y2]] = [edge.from, edge.to].map((one) => places.get(one));
    return svg("path", { class: `edge ${edge.score < 0 ? "lowers" : "raises"}`, d: path(x1, y1, x2, y2),
      "stroke-width": 0.6 + (5 * Math.abs(edge.score)) / most, onclick: () => onEdge(edge) },
    svg("title", {}, `${words(edge)}: ${number(edge.score, true)}`));
  });
  const boxes = [...places].map(([name, [x, y]]) => {
    const short = name.replace(/^L\d+ (whole )?/, "");
    const open = (event) => {
      event.preventDefault();
      page.openComponent(name, event.currentTarget);
    };
    const width = 10 + 8.6 * short.length;
    return svg("g", { class: "graph-node", tabindex: "0", role: "button", "aria-haspopup": "menu", "aria-label": name, onclick: open,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") open(event); } },
    svg("rect", { x: x - width / 2, y: y - 11, width, height: 22, rx: 5 }), svg("text", { x, y: y + 4, "text-anchor": "middle" }, short));
  });
  const labels = levels.map((layer, level) => svg("text", { class: "layer", x: 6, y: height - ROW_PIXELS * (level + 0.6) + 4 },
    layer === -1 ? "" : layer === Infinity ? "" : `L${layer}`));
  return { width: WIDTH, height, element: svg("g", {}, lines, labels, boxes) };
}

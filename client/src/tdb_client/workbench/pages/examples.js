// Where texts activate a node: the strongest, the lowest and some at random, and how often it is how active.

import { legend, make } from "../report/elements.js";
import { colour, number } from "../report/numbers.js";
import { beyondNote, largestOfOthers, markBeyond } from "./scale.js";
import { svg } from "./svg.js";

const LISTS = [["examples", "Strongest"], ["lowest", "Lowest"], ["random", "At random"]];
const WIDTH = 560;
const HEIGHT = 150;
const MARGIN = 26;

/** The section of a node's page. */
export function examples(line) {
  const values = LISTS.flatMap(([name]) => line[name]).map(({ tokens }) => tokens.map(({ activation }) => activation));
  const most = largestOfOthers(values);
  const key = make("div", { class: "legend" });
  const isAboveZero = values.flat().every((one) => one >= 0);
  legend(key, most, [isAboveZero ? "none" : "negative", "positive"], isAboveZero);
  key.append(...beyondNote(values.flat(), most));
  return make("section", { "aria-labelledby": "examples-title" },
    make("h2", { id: "examples-title" }, "In texts"),
    make("p", { class: "hint" }, `In ${line.n_texts.toLocaleString("en")} texts it is above 0 at ${(100 * line.fraction_active).toPrecision(3)} % of tokens.`),
    histogram(line.histogram), key,
    LISTS.filter(([name]) => line[name].length).map(([name, title], index) => make("details", { open: index === 0, class: "examples" },
      make("summary", {}, title), make("ol", {}, line[name].map((one) => make("li", {}, example(one, most)))))));
}

/** What does not print by itself is shown as a sign, so that a text stays one line after another. */
function shown(text) {
  return text.replaceAll("\n", "⏎").replace(/\p{C}/gu, "�");
}

function example({ tokens, peak, attended_to: attendedTo }, most) {
  const about = attendedTo === undefined ? "" : `, from ${JSON.stringify(tokens[attendedTo]?.text ?? "")}`;
  const words = tokens.map(({ text, activation }, index) => {
    const kind = index === peak ? "peak" : index === attendedTo ? "attended" : null;
    const word = make("span", { class: kind, title: `${number(activation)}${index === peak ? about : ""}` }, shown(text));
    word.style.backgroundColor = colour(activation, most);
    return markBeyond(word, activation, most);
  });
  return [make("b", { class: "figure" }, number(tokens[peak].activation)), make("p", { class: "example" }, words)];
}

/** Counts on a logarithmic scale, as most activations are small. */
function histogram({ edges, counts }) {
  if (!counts.length) return [];
  const highest = Math.log1p(Math.max(...counts));
  const width = (WIDTH - 2 * MARGIN) / counts.length;
  const bars = counts.map((count, index) => {
    const height = ((HEIGHT - 2 * MARGIN) * Math.log1p(count)) / highest;
    return svg("rect", { x: MARGIN + index * width, y: HEIGHT - MARGIN - height, width: Math.max(0.5, width - 0.5), height },
      svg("title", {}, `${number(edges[index])} to ${number(edges[index + 1])}: ${count}`));
  });
  const end = (at, x, anchor) => svg("text", { x, y: HEIGHT - 6, "text-anchor": anchor }, number(edges[at]));
  const words = `activations other than 0, from ${number(edges[0])} to ${number(edges.at(-1))}`;
  return svg("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words },
    bars, end(0, MARGIN, "start"), end(edges.length - 1, WIDTH - MARGIN, "end"), svg("text", { x: MARGIN, y: 14 }, "tokens, logarithmic"));
}

// The page of one head, neuron or latent: what it writes and reads, and where it is active.

import { tokenLists } from "../report/card.js";
import { byId, heatCell, legend, make, pageLink } from "../report/elements.js";
import { colour, largest, number, shortNumber } from "../report/numbers.js";
import { SCALARS } from "../report/state.js";
import { fragment, fromFragment } from "./address.js";
import { lines, pageAddress } from "./api.js";
import { guarded, newestOnly } from "./pictures.js";
import { beyondNote, largestOfOthers, markBeyond } from "./scale.js";

const MOST_TEXTS = 32;
const SHOWN_TOKENS = 12;

function section(name, title, ...children) {
  return make("section", { "aria-labelledby": `${name}-title` }, make("h2", { id: `${name}-title` }, title), children);
}

/** The node's name; as it stands where it is badly written, so that the server says so. */
function nameInAddress() {
  const written = location.pathname.split("/").at(-1);
  try {
    return decodeURIComponent(written);
  } catch {
    return written;
  }
}

export async function drawNodePage() {
  document.body.classList.add("node-page");
  for (const id of ["question", "trail"]) byId(id).hidden = true;
  const name = nameInAddress();
  const { question } = fromFragment(location.hash);
  const place = byId("answer");
  const signal = new AbortController().signal;
  const heading = make("h2", { class: "node-name" }, name);
  const found = make("div", { class: "sections" });
  const pasted = make("div", {});
  const drawn = new Redrawn();
  const waiting = make("p", { class: "hint", role: "status" }, "computing …");
  place.replaceChildren(heading, found, waiting);
  await guarded(found, signal, async () => {
    for await (const line of lines("node", { node: name, ...(question ? { question } : {}) }, signal)) {
      drawn.draw(found, (place) => drawLine(place, line, question));
      if (line.event !== "node") continue;
      heading.textContent = line.spelling;
      place.append(textForm(name, pasted, drawn, signal), pasted); // which there is nothing to do with where there is no such node
    }
  });
  waiting.remove();
}

/** Parts of the page, which are drawn again where dark and light change: their colours are the script's. */
class Redrawn {
  constructor() {
    this.parts = new Map(); // by place, what has drawn into it
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.parts.forEach((draws, place) => {
      const troubles = place.querySelectorAll(".trouble");
      place.replaceChildren();
      draws.forEach((draw) => draw(place));
      place.append(...troubles);
    }));
  }

  draw(place, draw) {
    this.parts.set(place, [...(this.parts.get(place) ?? []), draw]);
    draw(place);
  }

  clear(place) {
    this.parts.delete(place);
    place.replaceChildren();
  }
}

function drawLine(place, line, question) {
  if (line.event === "node") drawNode(place, line, question);
  if (line.event === "activations") place.append(activations(line, line.run ? "On the prompt, with the changes" : "On the prompt"));
  if (line.event === "uses") place.append(uses(line));
  if (line.event === "examples") import("./examples.js").then(({ examples }) => place.append(examples(line)));
}

function drawNode(place, line, question) {
  document.title = `${line.spelling} · transformer debugger`;
  const lists = tokenLists(line, SHOWN_TOKENS);
  place.append(
    line.label ? make("p", { class: "label" }, line.label) : "",
    line.link ? make("p", {}, pageLink(line.link, line.link)) : "",
    question ? make("p", { class: "hint" }, make("a", { href: pageAddress(`.${fragment(question)}`) }, "back to the question")) : "",
    lists.length ? section("vocabulary", "In the vocabulary",
      make("p", { class: "hint" }, "What one unit of it adds to the logits of tokens, and whose embeddings excite it, through nothing between."),
      make("div", { class: "node-lists" }, lists)) : "",
  );
}

/** Tokens on the colour of how active it is there; of a head, also whom it writes about most. */
function activations({ tokens, values, attendedTo }, title) {
  const most = largestOfOthers([values]);
  const key = make("div", { class: "legend" });
  const isAboveZero = values.every((one) => one >= 0);
  legend(key, most, [isAboveZero ? "none" : "negative", "positive"], isAboveZero);
  key.append(...beyondNote(values, most));
  const word = ({ text, quoted }, index) => {
    const box = make("span", { class: "word" }, text);
    box.style.backgroundColor = colour(values[index], most);
    const about = attendedTo ? `, most for ${tokens[attendedTo[index]].quoted} @ ${attendedTo[index]}` : "";
    const said = `${quoted} @ ${index}: ${number(values[index])}${about}`;
    return make("span", { class: "token", title: said }, box, markBeyond(make("small", {}, shortNumber(values[index])), values[index], most));
  };
  const strongest = values.reduce((best, one, index) => (Math.abs(one) > Math.abs(values[best]) ? index : best), 0);
  const about = attendedTo ? ` It writes there most for ${tokens[attendedTo[strongest]].quoted} @ ${attendedTo[strongest]}.` : "";
  return make("section", {}, title ? make("h2", {}, title) : [],
    make("p", { class: "hint" }, `${attendedTo ? "How much it writes" : "Its activation"} at each token; the most, ` +
      `${number(values[strongest])}, at ${tokens[strongest].quoted} @ ${strongest}.${about}`),
    make("div", { class: "prompt" }, tokens.map(word)), key);
}

/** The uses of a head that are among the strongest of a question. */
function uses({ tokens, nodes, scalars, lists }) {
  if (!nodes.length) return section("uses", "Its uses here", make("p", { class: "hint" }, "None of them is among the question's strongest nodes."));
  const columns = Object.entries(SCALARS);
  const most = columns.map(([name]) => largest(scalars[name]));
  const named = (token) => `${tokens[token].quoted} @ ${token}`;
  const at = ({ token, attended_to: to }) => `${named(token)}${to === null ? "" : ` → ${named(to)}`}`;
  return section("uses", "Its uses here", make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table of uses" },
    make("table", { class: "nodes" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "at"),
        columns.map(([, { title }]) => make("th", { scope: "col", class: "figure" }, title)))),
      make("tbody", {}, nodes.map((node, row) => make("tr", {}, make("th", { scope: "row" }, make("code", {}, at(node))),
        columns.map(([name, { isEffect }], index) => isEffect
          ? heatCell(scalars[name][row], most[index], number(scalars[name][row], true), { class: "figure" })
          : make("td", { class: "figure" }, number(scalars[name][row])))))))),
  make("div", { class: "node-lists" }, nodes.slice(0, 3).map((node, row) => make("section", {}, make("h3", {}, make("code", {}, at(node))),
    tokenLists(lists[row] ?? {})))));
}

/** Texts to paste, one a line. */
function textForm(name, pasted, drawn, signal) {
  const field = make("textarea", { id: "texts", rows: "3", spellcheck: "false", "aria-describedby": "texts-hint" });
  const form = make("form", { class: "pasted" }, make("h2", {}, make("label", { for: "texts" }, "On your own texts")),
    make("p", { class: "hint", id: "texts-hint" }, `One a line, up to ${MOST_TEXTS}.`), field,
    make("div", { class: "run" }, make("button", { type: "submit", class: "primary", id: "run-texts" }, "Run")));
  const texts = () => field.value.split("\n").filter(Boolean);
  const run = newestOnly(pasted, signal, async (current) => {
    drawn.clear(pasted);
    for await (const line of lines("node", { node: name, texts: texts() }, current)) {
      if (line.event === "activations") drawn.draw(pasted, (place) => place.append(activations(line, "")));
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (texts().length) run();
  });
  return form;
}

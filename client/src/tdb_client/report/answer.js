// An answer's pictures: their places on the page, and drawing again what depends on a choice.

import { AttentionView } from "./attention.js";
import { drawCard } from "./card.js";
import { byId, choice, make } from "./elements.js";
import { drawLogits } from "./logits.js";
import { NodeView } from "./nodes.js";
import { difference, number } from "./numbers.js";
import { drawPrompt, markToken } from "./prompt.js";
import { drawRequest } from "./request.js";
import { CHANGE, RUN_NAMES, SCALARS, State } from "./state.js";
import { drawSums } from "./sums.js";

const MANY_TOKENS = 300;
const chosen = () => make("span", { class: "chosen" });
const hint = (...text) => make("p", { class: "hint" }, text);

function section(name, title, ...children) {
  return make("section", { id: `${name}-section`, "aria-labelledby": `${name}-title` },
    make("h2", { id: `${name}-title` }, title), children);
}

/** Where the parts of an answer stand; of more parts, which a page may have beside them, before the request. */
function places(more) {
  return [
    make("div", { id: "values", class: "values" }),
    make("div", { id: "notes", class: "hint" }),
    make("nav", { class: "bar", "aria-label": "what the pictures show" },
      make("fieldset", { id: "runs" }, make("legend", {}, "show")),
      make("fieldset", { id: "scalars" }, make("legend", {}, "number")),
      make("p", { id: "meaning", class: "meaning", "aria-live": "polite" })),
    make("div", { class: "sections" },
      section("prompt", "Prompt",
        hint("What each token adds to the objective: act × grad of its embedding. Choose a token to see its nodes alone."),
        make("div", { id: "prompt", class: "prompt" }),
        make("div", { id: "prompt-legend", class: "legend" })),
      make("div", { class: "pair" },
        section("logits", "Likeliest next tokens", make("p", { class: "hint", id: "logits-hint" }), make("table", { id: "logits", class: "bars" })),
        section("sums", "Where it comes from",
          hint("Here: ", chosen(), ", summed over all layers and components, not only the nodes listed. Heads count where they write; what they read is shown apart."),
          make("div", { class: "scroll tall", id: "sums-scroll", tabindex: "0", role: "region", "aria-label": "sums by token" },
            make("table", { id: "sums", class: "heat" })))),
      section("nodes", "Nodes",
        hint("The strongest uses of a head, neuron, latent or embedding. Point at one, or move to it with Tab and the arrow keys, to see its tokens."),
        make("div", { class: "filters" },
          make("label", { for: "filter" }, "filter ",
            make("input", { id: "filter", type: "search", placeholder: "head, L23, Mary …", autocomplete: "off", spellcheck: "false" })),
          make("div", { id: "types", class: "chips", role: "group", "aria-label": "kinds of node" }),
          make("p", { id: "count", class: "count", "aria-live": "polite" })),
        make("div", { class: "with-card" },
          make("div", {}, make("table", { id: "nodes", class: "nodes" }), make("button", { id: "more", type: "button", class: "more" })),
          make("aside", { id: "card", class: "card", "aria-label": "tokens of the node", "aria-live": "polite" }))),
      section("attention", "Attention",
        hint("Rows attend to columns. ", make("span", { id: "attention-hint" })),
        make("div", { class: "with-heads" },
          make("div", { class: "scroll" },
            make("div", { id: "whole", class: "whole" }), make("table", { id: "attention", class: "grid" }),
            make("div", { id: "attention-legend", class: "legend" })),
          make("fieldset", { id: "heads", class: "heads" }, make("legend", {}, "heads, by ", chosen())))),
      more,
      section("request", "The request", hint("Ask again, or change it."), make("div", { id: "request" }))),
    make("footer", {}, make("dl", { id: "facts" })),
  ];
}

/** Draws a part of the page; where prompts are long, what takes longest to lay out, once all else is seen. */
function drawInTime(data, id, draw) {
  const place = byId(id);
  const work = () => { if (place.isConnected) draw(); };
  if (data.tokens.length <= MANY_TOKENS) work();
  else requestAnimationFrame(() => setTimeout(work));
}

function drawValues(data) {
  const figure = (text, title) => make("div", {}, make("strong", {}, text), make("span", {}, title));
  const [first, second] = data.runs.map(({ value }) => value);
  const before = data.ablations_before.length ? ` with ${data.ablations_before.join(", ")} ablated` : "";
  byId("values").replaceChildren(figure(number(first), data.objective + before));
  const notes = [...data.baselines.map((one) => `compared with the baseline “${one}”: act × grad and direct effects, and their sums, are of differences`),
    ...(data.circuit ? [data.circuit] : [])];
  byId("notes").replaceChildren(...notes.map((one) => make("p", {}, one)));
  if (data.runs.length > 1) {
    const how = data.ablations.length ? `with ${data.ablations.join(", ")} ablated` : before ? "with nothing ablated" : "after";
    byId("values").append(figure(number(second), how), figure(number(difference(first, second), true), "change"));
  }
  byId("facts").replaceChildren(...Object.entries(data.facts).flatMap(([name, text]) =>
    [make("dt", {}, name), make("dd", {}, text)]));
}

/**
 * Draws an answer in place of what stood there.
 *
 * @param place the element to fill
 * @param data the answer, as `report_data` in data.py makes it
 * @param hooks what a page adds, each of it optional: `view`, what is to be shown first; `onView`, told of what is
 *   shown after every choice; `more`, further sections; `nodeActions`, the elements that a node's card ends with;
 *   `openNode` and `openPair`, called when what can be done with a row of the table or a cell of the grid is wanted
 * @returns the node table, as `nodes`
 */
export function drawAnswer(place, data, hooks = {}) {
  place.replaceChildren(...places(hooks.more ?? []));
  const state = new State(data.runs, hooks.view);
  const seen = () => hooks.onView?.({
    shown: state.shown, scalar: state.scalar, token: state.token, ...nodes.view(), ...attention.view(),
  });
  const nodes = new NodeView(data, state, hooks, { onNode: (row) => drawCard(data, state, nodes, row, hooks), onChoice: seen });
  const attention = new AttentionView(data, state, hooks, seen);
  const chooseToken = (token) => {
    state.token = token;
    markToken(token);
    byId("prompt").children[token]?.focus();
    nodes.draw();
    seen();
  };
  const redraw = () => {
    const { title, meaning } = SCALARS[state.scalar];
    const ofDifference = data.baselines.length && SCALARS[state.scalar].isEffect ? " of the difference from the baseline" : "";
    byId("meaning").textContent = `${title}${ofDifference}: ${meaning}`;
    const name = `${state.title}${ofDifference}`;
    place.querySelectorAll(".chosen").forEach((one) => { one.textContent = name; });
    drawPrompt(data, state, chooseToken);
    nodes.draw();
    drawInTime(data, "attention", () => attention.draw());
    drawInTime(data, "sums", () => drawSums(data, state));
  };
  const show = (change) => {
    Object.assign(state, change);
    redraw();
    seen();
  };
  const runs = [["0", RUN_NAMES[0]], ["1", RUN_NAMES[1]], [CHANGE, CHANGE]];
  if (data.runs.length > 1) choice(byId("runs"), "run", runs, state.shown, (shown) => show({ shown }));
  else byId("runs").remove();
  choice(byId("scalars"), "scalar", Object.entries(SCALARS).map(([name, { title }]) => [name, title]), state.scalar,
    (scalar) => show({ scalar }));
  drawValues(data);
  drawLogits(data);
  drawRequest(data.request);
  redraw();
  return { nodes };
}

// The tokens of one node: what its write raises and lowers, and what excites it.

import { byId, make, pageLink } from "./elements.js";
import { largest, number } from "./numbers.js";
import { SCALARS } from "./state.js";

const CARD_TOKENS = 6;
const LISTS = [ // what the data call it, the title of the largest and of the smallest scores
  ["writes", "raises", "lowers"],
  ["reads", "excited by", "calmed by"],
  ["input", "excited by", "calmed by"],
  ["query", "excited through the query by", "calmed through the query by"],
  ["key", "excited through the key by", "calmed through the key by"],
];

export function drawCard(data, state, view, row, { nodeActions } = {}) {
  if (row === null) {
    byId("card").replaceChildren();
    return;
  }
  const node = data.nodes[row];
  const found = view.tokens(row) ?? {};
  const lists = tokenLists(found);
  if (found.attended_to) {
    const pairs = found.attended_to.map(([token, value]) => [`${data.tokens[token]?.quoted ?? ""} @ ${token}`, value]);
    lists.push(make("div", { class: "ends" }, tokenList("excited by attending to", pairs)));
  }
  const numbers = Object.entries(SCALARS).map(([name, { title }]) =>
    [make("dt", {}, title), make("dd", {}, number(state.perNode(row, name), state.isChange))]);
  byId("card").replaceChildren(
    make("h3", {}, node.component, make("span", {}, view.place(node))),
    make("p", { class: "spelling" }, make("code", {}, node.spelling), state.isChange ? " · changes" : ""),
    ...(node.label ? [make("p", { class: "label" }, node.label)] : []),
    ...(node.link ? [make("p", { class: "link" }, pageLink(node.link, node.link))] : []),
    make("dl", {}, numbers),
    ...(nodeActions ? [make("div", { class: "actions" }, nodeActions(node))] : []),
    ...lists,
  );
}

/** Both ends of each ranking of tokens that a node has, side by side. */
export function tokenLists(found, count = CARD_TOKENS) {
  return LISTS.filter(([name]) => found[name]).map(([name, high, low]) =>
    make("div", { class: "ends" }, tokenList(high, found[name][0], count), tokenList(low, found[name][1], count)));
}

function tokenList(title, tokens, count = CARD_TOKENS) {
  const most = largest(tokens.map(([, score]) => score));
  return make("section", {}, make("h4", {}, title), make("ol", {}, tokens.slice(0, count).map(([token, score]) => {
    const bar = make("i", { "aria-hidden": "true", class: score < 0 ? "below" : "" });
    bar.style.width = `${(100 * Math.abs(score ?? 0)) / most}%`;
    return make("li", {}, make("code", {}, token), make("span", {}, number(score)), bar);
  })));
}

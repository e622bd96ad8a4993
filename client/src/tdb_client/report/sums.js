// Sums per token by kind of component, as a heat map. Direct effects at a token also add up, over all tokens to the
// objective; what heads at later tokens read from it is shown apart, as it is counted where those heads write.

import { byId, heatCell, make } from "./elements.js";
import { ZERO, largest, number, sum } from "./numbers.js";

const PARTS = [
  ["embedding", "embed\u00adding"],
  ["heads_from", "heads here"],
  ["neurons", "neurons here"],
];

export function drawSums(data, state) {
  const sums = (part) => state.perToken((run) => run.sums[state.scalar][part] ?? []);
  const parts = PARTS.filter(([part]) => sums(part).length).map(([part, title]) => [title, sums(part)]);
  if (state.scalar === "direct_effect" && parts.length > 1) { // alone adds up
    parts.push(["all here", data.tokens.map((_, token) => sum(parts.map(([, values]) => values[token])))]);
  }
  const read = sums("heads_to");
  if (read.length) parts.push(["read by heads", read]);
  // Effects share a scale, as they add up; sizes of different things do not.
  const most = parts.map(([, values]) => largest(state.isEffect ? parts.flatMap(([, all]) => all) : values));
  const row = (heading, cells) => make("tr", {}, make("th", { scope: "row" }, heading), cells);
  byId("sums").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "token"),
      parts.map(([title]) => make("th", { scope: "col" }, title)))),
    make("tbody", {}, data.tokens.map(({ quoted }, token) =>
      row(make("code", {}, quoted), parts.map(([, values], part) =>
        heatCell(values[token], most[part], values[token] === 0 ? ZERO : number(values[token], state.isEffect)))))),
    make("tfoot", {}, row("all tokens", parts.map(([, values]) => make("td", {}, number(sum(values), state.isEffect))))),
  );
  const deepest = largest(parts.flatMap(([, values]) => values));
  const strongest = data.tokens.findIndex((_, token) => parts.some(([, values]) => Math.abs(values[token]) === deepest));
  const scroll = byId("sums-scroll"); // of a long prompt, to where something is to be seen
  scroll.scrollTop = (byId("sums").tBodies[0].rows[strongest]?.offsetTop ?? 0) - scroll.clientHeight / 2;
}

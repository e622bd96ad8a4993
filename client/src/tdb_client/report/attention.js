// Who attends to whom: all heads together, or one head as far as the answer lists it.

import { byId, heatCell, legend, make } from "./elements.js";
import { colour, difference, largest, number, shortNumber } from "./numbers.js";
import { SCALARS } from "./state.js";

const MAX_NUMBERED = 24;
export const ALL_HEADS = "all heads together";

export class AttentionView {
  constructor(data, state, hooks, onChoice) {
    const { head = ALL_HEADS, showsAttention = true } = hooks.view ?? {};
    Object.assign(this, { data, state, hooks, onChoice, heads: new Map() });
    data.nodes.forEach((node, row) => {
      if (node.type !== "attention_head") return;
      this.heads.set(node.component, [...(this.heads.get(node.component) ?? []), row]);
    });
    this.chosen = this.heads.has(head) ? head : ALL_HEADS;
    this.showsAttention = showsAttention; // of a head whose whole attention is known; else the chosen number
    const box = make("input", { type: "checkbox", checked: showsAttention, onchange: () => {
      this.showsAttention = box.checked;
      this.drawGrid();
      this.onChoice();
    } });
    byId("whole").append(make("label", {}, box, " its whole attention"));
    this.list = make("div", {});
    byId("heads").append(this.list);
    if (!hooks.openPair) return;
    byId("attention").setAttribute("role", "grid");
    byId("attention").addEventListener("click", ({ target }) => this.open(target.closest("td[data-from]")));
    byId("attention").addEventListener("keydown", (event) => this.move(event));
  }

  /** What is shown of attention, to be shown again. */
  view() {
    return { head: this.chosen, showsAttention: this.showsAttention };
  }

  draw() {
    this.drawHeads();
    this.drawGrid();
  }

  /** The heads to choose from, the one with the largest number first. */
  drawHeads() {
    const strongest = (rows) => rows.map((row) => this.state.perNode(row, this.state.scalar))
      .reduce((most, one) => (Math.abs(one ?? 0) > Math.abs(most ?? 0) ? one : most), 0);
    const heads = [...this.heads].map(([name, rows]) => [name, rows.length, strongest(rows)]);
    heads.sort(([, , a], [, , b]) => Math.abs(b) - Math.abs(a));
    const most = largest(heads.map(([, , value]) => value));
    const option = (name, ...more) => make("label", {}, make("input", {
      type: "radio", name: "head", value: name, checked: name === this.chosen,
      onchange: () => { this.chosen = name; this.drawGrid(); this.onChoice(); },
    }), make("span", {}, name), more);
    this.list.replaceChildren(option(ALL_HEADS), ...heads.map(([name, count, value]) => {
      const figure = make("b", {}, number(value, this.state.isEffect));
      figure.style.backgroundColor = colour(value, most);
      return option(name, make("small", {}, `${count} ${count === 1 ? "pair" : "pairs"}`), figure);
    }));
  }

  drawGrid() {
    const isKnown = this.state.runsShown().every((run) => run.attention[this.chosen]);
    byId("whole").hidden = !isKnown;
    const isWhole = isKnown && this.showsAttention;
    const { tokens, cell } = isWhole ? this.whole()
      : this.chosen === ALL_HEADS ? this.together() : this.one(this.heads.get(this.chosen));
    const shown = tokens.flatMap((from) => tokens.filter((to) => to <= from).map((to) => cell(from, to)));
    const most = largest(shown);
    const isNumbered = tokens.length <= MAX_NUMBERED;
    const label = (token) => make("code", {}, this.data.tokens[token].quoted);
    byId("attention").classList.toggle("numbered", isNumbered);
    byId("attention").replaceChildren(
      make("caption", {}, this.chosen),
      make("thead", {}, make("tr", {}, make("td", {}), tokens.map((token) =>
        make("th", { scope: "col" }, make("span", {}, label(token)))))),
      make("tbody", {}, tokens.map((from) => make("tr", {}, make("th", { scope: "row" }, label(from)),
        tokens.map((to) => this.cell(from, to, to <= from ? cell(from, to) : null, most, isNumbered))))),
    );
    byId("attention").querySelector("td[tabindex]")?.setAttribute("tabindex", "0");
    const isShare = isWhole && !this.state.isChange;
    const isAboveZero = isShare || (!this.state.isEffect && shown.every((one) => (one ?? 0) >= 0));
    const ends = isShare ? ["none", "attention"] : isWhole ? ["less", "more"]
      : this.state.isEffect ? ["lowers", "raises"] : [isAboveZero ? "none" : "negative", "positive"];
    legend(byId("attention-legend"), most, ends, isAboveZero);
  }

  cell(from, to, value, most, isNumbered) {
    if (to > from) return make("td", { class: "later" });
    const pair = `${this.data.tokens[from].quoted} @ ${from} → ${this.data.tokens[to].quoted} @ ${to}`;
    const isKnown = value !== null && value !== undefined;
    const title = `${pair}: ${isKnown ? number(value, true) : "not listed"}`;
    const attributes = this.hooks.openPair
      ? { title, "aria-label": title, "data-from": from, "data-to": to, tabindex: "-1" } : { title };
    if (!isKnown) return make("td", { class: "unlisted", ...attributes });
    return heatCell(value, most, isNumbered ? shortNumber(value) : "", attributes);
  }

  /** Asks what is to be done with a cell: a pair of tokens, of one head or of all that the answer lists there. */
  open(cell) {
    if (cell === null) return;
    const [from, to] = [cell.dataset.from, cell.dataset.to].map(Number);
    const { nodes } = this.data;
    const strength = (row) => Math.abs(this.state.perNode(row, this.state.scalar) ?? 0);
    const rows = [...this.heads].filter(([name]) => this.chosen === ALL_HEADS || this.chosen === name)
      .flatMap(([, all]) => all.filter((row) => nodes[row].token === from && nodes[row].attended_to === to))
      .sort((a, b) => strength(b) - strength(a));
    this.hooks.openPair({ from, to, head: this.chosen === ALL_HEADS ? null : this.chosen, nodes: rows.map((row) => nodes[row]) }, cell);
  }

  /** Arrow keys move between cells, so that Tab passes the grid in one step; Enter and Space open one. */
  move(event) {
    const cell = event.target.closest("td[data-from]");
    if (cell === null) return;
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    const row = cell.parentElement;
    const target = byId("attention").rows[row.rowIndex + down]?.cells[cell.cellIndex + right];
    if (event.key === "Enter" || event.key === " ") this.open(cell);
    else if (!down && !right) return;
    event.preventDefault();
    if (!target?.hasAttribute("data-from") || target === cell) return;
    cell.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  }

  together() {
    const { meaning } = SCALARS[this.state.scalar];
    const hint = `Each cell is the ${this.state.title} of attention between two tokens (${meaning}), summed over every head of every layer.`;
    return this.known(hint, (run) => run.pairs[this.state.scalar]);
  }

  whole() {
    const what = this.state.isChange ? "How much more of its attention each token pays to each than before."
      : "How much of its attention each token pays to each; a row adds up to 1.";
    return this.known(what, (run) => run.attention[this.chosen]);
  }

  /** The grid of numbers that are known for every pair of the shown tokens. */
  known(hint, get) {
    const { pair_tokens: tokens, tokens: all } = this.data;
    byId("attention-hint").textContent = hint + (tokens.length < all.length
      ? ` ${tokens.length} of ${all.length} tokens: those with the largest effects.` : "");
    const place = new Map(tokens.map((token, index) => [token, index]));
    const values = this.state.runsShown().map(get);
    const at = (sums, from, to) => sums[place.get(from)]?.[place.get(to)] ?? null;
    return { tokens, cell: (from, to) => values.length === 1
      ? at(values[0], from, to) : difference(at(values[0], from, to), at(values[1], from, to)) };
  }

  one(rows) {
    const { nodes, tokens: all, pair_tokens: short } = this.data;
    byId("attention-hint").textContent =
      `Each cell is the ${this.state.title} of this head between two tokens. ` +
      "Grey cells are not among this answer's nodes: smaller, but not known here. Ask for more with -k.";
    const used = rows.flatMap((row) => [nodes[row].token, nodes[row].attended_to]);
    const tokens = short.length === all.length ? short : [...new Set(used)].sort((a, b) => a - b);
    const values = new Map(rows.map((row) =>
      [`${nodes[row].token} ${nodes[row].attended_to}`, this.state.perNode(row, this.state.scalar)]));
    return { tokens, cell: (from, to) => values.get(`${from} ${to}`) ?? null };
  }
}

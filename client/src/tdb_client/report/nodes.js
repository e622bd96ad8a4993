// The node table: sorted by a click on a heading, filtered by words, kinds and a token of the prompt.

import { byId, heatCell, make, pageLink } from "./elements.js";
import { moveFocus } from "./focus.js";
import { difference, largest, number } from "./numbers.js";
import { SCALARS } from "./state.js";

const FIRST_ROWS = 20;
const SHOWN_TOKENS = 5;
const ORDERS = ["size", "descending", "ascending"]; // what a click on the same heading goes through
const WORD = /"([^"]+)"|\S+/g; // of the filter; several are one in double quotes
const ARROWS = { size: "|↓|", descending: "↓", ascending: "↑" };
const KINDS = {
  attention_head: "heads", mlp_neuron: "neurons", mlp_autoencoder_latent: "MLP latents",
  attention_autoencoder_latent: "attention latents", autoencoder_latent: "latents", layer: "embeddings",
  resid_post_attn_autoencoder_latent: "post-attn latents", resid_post_mlp_autoencoder_latent: "post-mlp latents",
  mlp_transcoder_latent: "transcoder latents", whole_head: "whole heads", whole_mlp: "whole MLPs",
};
const kindOf = (node) => KINDS[node.type] ?? "others";

export class NodeView {
  constructor(data, state, hooks, { onNode, onChoice }) {
    const { order = "size", sortedBy = null, isWhole = false, hidden = [], filter = "", node = null } = hooks.view ?? {};
    Object.assign(this, { data, state, hooks, onNode, onChoice, order: ORDERS.includes(order) ? order : ORDERS[0], sortedBy, isWhole,
      hidden: new Set(hidden) });
    this.held = this.rowOf(node); // whose card stays, wherever one points
    byId("filter").value = filter;
    this.texts = data.nodes.map((node, row) => [node.spelling, node.component, this.place(node),
      kindOf(node), node.label ?? "", ...(this.bestTokens(row).map(([token]) => token))].join(" ").toLowerCase());
    const choose = (change) => {
      change?.();
      this.draw();
      this.onChoice();
    };
    byId("filter").addEventListener("input", () => choose());
    byId("more").addEventListener("click", () => choose(() => { this.isWhole = !this.isWhole; }));
    byId("nodes").addEventListener("keydown", (event) => this.move(event));
    const kinds = [...new Set(data.nodes.map(kindOf))];
    for (const kind of kinds.length > 1 || this.hidden.has(kinds[0]) ? kinds : []) {
      const count = data.nodes.filter((node) => kindOf(node) === kind).length;
      const box = make("input", { type: "checkbox", checked: !this.hidden.has(kind), onchange: () =>
        choose(() => this.hidden[box.checked ? "delete" : "add"](kind)) });
      byId("types").append(make("label", {}, box, ` ${kind} ${count}`));
    }
  }

  /** What is shown of the table, to be shown again. */
  view() {
    const { order, sortedBy, isWhole, hidden, held } = this;
    return { order, sortedBy, isWhole, hidden: [...hidden], filter: byId("filter").value, node: this.data.nodes[held]?.spelling ?? null };
  }

  rowOf(spelling) {
    const row = this.data.nodes.findIndex((node) => node.spelling === spelling);
    return row < 0 ? null : row;
  }

  place({ token, attended_to: attendedTo }) {
    const quoted = (one) => this.data.tokens[one]?.quoted ?? String(one);
    return attendedTo === null ? quoted(token) : `${quoted(token)} → ${quoted(attendedTo)}`;
  }

  /** A node's tokens; of two runs those of the one where it writes more, as an ablated node writes nothing. */
  tokens(row) {
    const size = (one) => Math.abs(one?.writes?.[0][0]?.[1] ?? 0);
    return this.state.runsShown().map((run) => run.tokens[row]).reduce((most, one) => (size(one) > size(most) ? one : most));
  }

  bestTokens(row) {
    return this.tokens(row)?.writes?.[0] ?? [];
  }

  /** The columns of numbers: all four of one run, or of two the chosen one in each and the change. */
  columns() {
    const { runs } = this.data;
    const column = (run, name) => (row) => run.scalars[name][row];
    if (!this.state.isChange) {
      const run = this.state.runsShown()[0];
      return Object.entries(SCALARS).map(([name, { title, isEffect }]) =>
        ({ name, title, isEffect, value: column(run, name), isChosen: name === this.state.scalar }));
    }
    const values = runs.map((run) => column(run, this.state.scalar));
    const { title } = SCALARS[this.state.scalar];
    return [
      { name: "before", title: `${title} before`, value: values[0] },
      { name: "after", title: "after", value: values[1] },
      { name: "change", title: "change", isEffect: true, value: (row) => difference(values[0](row), values[1](row)), isChosen: true },
    ];
  }

  chosenRows(columns) {
    const words = [...byId("filter").value.toLowerCase().matchAll(WORD)].map(([word, phrase]) => phrase ?? word);
    const rows = this.data.nodes.map((_, row) => row).filter((row) => {
      const node = this.data.nodes[row];
      return !this.hidden.has(kindOf(node)) && words.every((word) => this.texts[row].includes(word)) &&
        (this.state.token === null || this.state.token === node.token || this.state.token === node.attended_to);
    });
    const key = this.sortKey(columns);
    const sign = this.order === "ascending" ? 1 : -1;
    return rows.map((row) => [key(row), row]).sort(([a, i], [b, j]) =>
      a === null || b === null ? (a === null) - (b === null) || i - j : sign * (a - b) || i - j).map(([, row]) => row);
  }

  sortKey(columns) {
    const { nodes } = this.data;
    if (this.sortedBy === "node") return (row) => (nodes[row].layer ?? -1) * 1e6 + nodes[row].index;
    if (this.sortedBy === "place") return (row) => nodes[row].token * 1e6 + (nodes[row].attended_to ?? -1);
    const { value } = columns.find(({ name }) => name === this.sortedBy) ?? columns.find(({ isChosen }) => isChosen);
    return this.order === "size" ? (row) => (value(row) === null ? null : Math.abs(value(row))) : value;
  }

  sortBy(name, isNumber) {
    const orders = isNumber ? ORDERS : ["ascending", "descending"];
    this.order = this.sortedBy === name ? orders[(orders.indexOf(this.order) + 1) % orders.length] : orders[0];
    this.sortedBy = name;
    this.draw();
    this.onChoice();
    byId("nodes").querySelector(`[data-column="${name}"]`).focus();
  }

  draw() {
    const columns = this.columns();
    if (!["node", "place", ...columns.map(({ name }) => name)].includes(this.sortedBy)) {
      Object.assign(this, { sortedBy: columns.find(({ isChosen }) => isChosen).name, order: "size" });
    }
    const rows = this.chosenRows(columns);
    const shown = this.isWhole ? rows : rows.slice(0, FIRST_ROWS);
    const most = columns.map(({ value }) => largest(this.data.nodes.map((_, row) => value(row))));
    byId("nodes").replaceChildren(
      make("thead", {}, make("tr", {},
        this.heading("node", "node"), this.heading("place", "at"),
        columns.map(({ name, title, isChosen }) => this.heading(name, title, isChosen ? "figure" : "figure other")),
        make("th", { scope: "col", class: "words" }, "raises"))),
      make("tbody", {}, shown.map((row, place) => this.row(row, columns, most, place))),
    );
    const { length } = this.data.nodes;
    byId("count").textContent = `${shown.length} of ${length} nodes` + (rows.length < length ? `, ${rows.length} fit` : "");
    byId("more").hidden = rows.length <= FIRST_ROWS;
    byId("more").textContent = this.isWhole ? `show ${FIRST_ROWS}` : `show all ${rows.length}`;
    this.onNode(this.held ?? shown[0] ?? null);
  }

  heading(name, title, kind = "") {
    const isNumber = kind !== "";
    const isSorted = this.sortedBy === name;
    const order = !isSorted ? null : this.order === "size" ? "other" : this.order;
    return make("th", { scope: "col", "aria-sort": order, class: kind },
      make("button", { type: "button", "data-column": name, onclick: () => this.sortBy(name, isNumber),
        title: isNumber ? "sort by size, then from the highest, then from the lowest" : "sort" },
      title, make("span", { class: "arrow" }, isSorted ? ARROWS[this.order] : "")));
  }

  row(row, columns, most, place) {
    const node = this.data.nodes[row];
    const show = () => { if (this.held === null) this.onNode(row); };
    const click = this.hooks.nodeActions ? () => this.hold(this.held === row ? null : row) : show;
    return make("tr", { onmouseenter: show, "data-row": row, class: row === this.held ? "held" : null },
      make("th", { scope: "row" },
        make("button", { type: "button", class: "node", title: node.spelling, tabindex: place ? "-1" : "0", onfocus: show, onclick: click,
          "aria-pressed": this.hooks.nodeActions ? String(row === this.held) : null }, node.component),
        this.hooks.openNode ? make("button", { type: "button", class: "do", tabindex: "-1", "aria-haspopup": "menu",
          "aria-label": `what to do with ${node.spelling}`, onclick: (event) => this.hooks.openNode(node, event.currentTarget) }, "⋯") : [],
        node.link ? pageLink(node.link, "↗", { class: "page", title: node.link, tabindex: "-1" }) : [],
        node.label ? make("span", { class: "label", title: node.label }, node.label) : []),
      make("td", { class: "at" }, this.place(node)),
      columns.map(({ value, isEffect, isChosen }, column) => {
        const kind = { class: isChosen ? "figure" : "figure other" };
        return isEffect ? heatCell(value(row), most[column], number(value(row), true), kind) : make("td", kind, number(value(row)));
      }),
      make("td", { class: "words" }, this.bestTokens(row).slice(0, SHOWN_TOKENS).map(([token]) => make("code", {}, token))),
    );
  }

  /** Keeps a node's card, or with null the card of whatever one points at. */
  hold(row) {
    this.held = row;
    byId("nodes").querySelectorAll("tbody tr").forEach((line) => {
      const isHeld = Number(line.dataset.row) === row;
      line.classList.toggle("held", isHeld);
      line.querySelector("button.node").setAttribute("aria-pressed", String(isHeld));
    });
    if (row !== null) this.onNode(row);
    this.onChoice();
  }

  /** Up and down lead from node to node, left and right between a node and what can be done with it. */
  move(event) {
    const inRow = { ArrowRight: ".do", ArrowLeft: ".node" }[event.key];
    if (inRow) document.activeElement.closest("tbody tr")?.querySelector(`button${inRow}`)?.focus();
    moveFocus(event, [...byId("nodes").querySelectorAll("button.node")], ["ArrowUp", "ArrowDown"]);
  }
}

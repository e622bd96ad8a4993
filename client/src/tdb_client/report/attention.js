// Who attends to whom: all heads together, or one head as far as the answer lists it.

const MAX_NUMBERED = 24;
const ALL_HEADS = "all heads together";

class AttentionView {
  constructor(data, state) {
    Object.assign(this, { data, state, chosen: ALL_HEADS, heads: new Map() });
    data.nodes.forEach((node, row) => {
      if (node.type !== "attention_head") return;
      this.heads.set(node.component, [...(this.heads.get(node.component) ?? []), row]);
    });
    this.showsAttention = true; // of a head whose whole attention is known; else the chosen number
    const box = make("input", { type: "checkbox", checked: true, onchange: () => {
      this.showsAttention = box.checked;
      this.drawGrid();
    } });
    byId("whole").append(make("label", {}, box, " its whole attention"));
    this.list = make("div", {});
    byId("heads").append(this.list);
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
      onchange: () => { this.chosen = name; this.drawGrid(); },
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
    const isShare = isWhole && !this.state.isChange;
    const ends = isShare ? ["none", "attention"] : isWhole ? ["less", "more"]
      : this.state.isEffect ? ["lowers", "raises"] : ["negative", "positive"];
    legend(byId("attention-legend"), most, ends, isShare);
  }

  cell(from, to, value, most, isNumbered) {
    if (to > from) return make("td", { class: "later" });
    const pair = `${this.data.tokens[from].quoted} @ ${from} → ${this.data.tokens[to].quoted} @ ${to}`;
    if (value === null || value === undefined) return make("td", { class: "unlisted", title: `${pair}: not listed` });
    return heatCell(value, most, isNumbered ? shortNumber(value) : "", { title: `${pair}: ${number(value, true)}` });
  }

  together() {
    const { title, meaning } = SCALARS[this.state.scalar];
    const hint = `Each cell is the ${title} of attention between two tokens (${meaning}), summed over every head of every layer.`;
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
      `Each cell is the ${SCALARS[this.state.scalar].title} of this head between two tokens. ` +
      "Grey cells are not among this answer's nodes: smaller, but not known here. Ask for more with -k.";
    const used = rows.flatMap((row) => [nodes[row].token, nodes[row].attended_to]);
    const tokens = short.length === all.length ? short : [...new Set(used)].sort((a, b) => a - b);
    const values = new Map(rows.map((row) =>
      [`${nodes[row].token} ${nodes[row].attended_to}`, this.state.perNode(row, this.state.scalar)]));
    return { tokens, cell: (from, to) => values.get(`${from} ${to}`) ?? null };
  }
}

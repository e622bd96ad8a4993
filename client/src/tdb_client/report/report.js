// Puts the page together, and draws again what depends on a choice.

const SCALARS = {
  direct_effect: {
    title: "direct effect", isEffect: true,
    meaning: "what a node adds in the direction of the objective, past all later layers",
  },
  act_times_grad: {
    title: "act × grad", isEffect: true,
    meaning: "estimated total effect on the objective, by all routes through the model",
  },
  write_norm: { title: "write norm", isEffect: false, meaning: "how much is added to the residual stream, with the activation's sign" },
  activation: { title: "activation", isEffect: false, meaning: "attention, or the activation of a neuron or latent" },
};
const RUN_NAMES = ["before", "after"];
const CHANGE = "change";

class State {
  constructor(runs) {
    Object.assign(this, { runs, shown: runs.length > 1 ? CHANGE : "0", scalar: "direct_effect", token: null });
  }

  get isChange() { return this.shown === CHANGE; }

  /** Whether numbers raise or lower the objective, so that their signs are always written. */
  get isEffect() { return this.isChange || SCALARS[this.scalar].isEffect; }

  runsShown() { return this.isChange ? this.runs : [this.runs[Number(this.shown)]]; }

  /** Numbers of the run that is shown, or how they change. */
  perToken(get) {
    const [first, second] = this.runsShown().map(get);
    return second ? first.map((one, index) => difference(one, second[index])) : first;
  }

  perNode(row, name) {
    const [first, ...second] = this.runsShown().map((run) => run.scalars[name][row]);
    return second.length ? difference(first, second[0]) : first;
  }
}

function drawHeader(data) {
  const figure = (text, title) => make("div", {}, make("strong", {}, text), make("span", {}, title));
  const [first, second] = data.runs.map(({ value }) => value);
  byId("model").textContent = `· ${data.facts.model} · ${data.tokens.length} tokens`;
  byId("values").replaceChildren(figure(number(first), data.objective));
  const notes = [...data.baselines.map((one) => `compared with the baseline “${one}”: act × grad and direct effects, and their sums, are of differences`),
    ...(data.circuit ? [data.circuit] : [])];
  byId("notes").replaceChildren(...notes.map((one) => make("p", {}, one)));
  if (data.runs.length > 1) {
    const how = data.ablations.length ? `with ${data.ablations.join(", ")} ablated` : "after";
    byId("values").append(figure(number(second), how), figure(number(difference(first, second), true), "change"));
  }
  byId("facts").replaceChildren(...Object.entries(data.facts).flatMap(([name, text]) =>
    [make("dt", {}, name), make("dd", {}, text)]));
}

function draw(data) {
  const state = new State(data.runs);
  const nodes = new NodeView(data, state, (row) => drawCard(data, state, nodes, row));
  const attention = new AttentionView(data, state);
  const chooseToken = (token) => {
    state.token = token;
    drawPrompt(data, state, chooseToken);
    byId("prompt").children[token ?? 0].focus();
    nodes.draw();
  };
  const redraw = () => {
    const { title, meaning } = SCALARS[state.scalar];
    const ofDifference = data.baselines.length && SCALARS[state.scalar].isEffect ? " of the difference from the baseline" : "";
    byId("meaning").textContent = `${title}${ofDifference}: ${meaning}`;
    const name = `${state.isChange ? "change of " : ""}${title}${ofDifference}`;
    document.querySelectorAll(".chosen").forEach((place) => { place.textContent = name; });
    drawPrompt(data, state, chooseToken);
    drawSums(data, state);
    nodes.draw();
    attention.draw();
  };
  const runs = [["0", RUN_NAMES[0]], ["1", RUN_NAMES[1]], [CHANGE, CHANGE]];
  if (data.runs.length > 1) choice(byId("runs"), "run", runs, state.shown, (one) => { state.shown = one; redraw(); });
  else byId("runs").remove();
  choice(byId("scalars"), "scalar", Object.entries(SCALARS).map(([name, { title }]) => [name, title]), state.scalar,
    (one) => { state.scalar = one; redraw(); });
  drawHeader(data);
  drawLogits(data);
  drawRequest(data.request);
  redraw();
}

draw(JSON.parse(byId("data").textContent));

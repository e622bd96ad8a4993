// The workbench: puts the question, its answer and what leads from one question to the next together.

import { drawAnswer } from "../report/answer.js";
import { ALL_HEADS } from "../report/attention.js";
import { byId, make } from "../report/elements.js";
import { useDark } from "../report/numbers.js";
import { actionButtons, actionsOf, componentActions } from "./actions.js";
import { fragment, fromFragment } from "./address.js";
import { AskError, ask, lines, onTokenWanted } from "./api.js";
import { Gathered, drawChanges } from "./changes.js";
import { askToken } from "./dialogs.js";
import { Form } from "./form.js";
import { closeMenu, openMenu, startMenu } from "./menu.js";
import { drawModel } from "./model.js";
import { pictureSections } from "./pictures.js";
import { showCancelled, showDone, showProgress, showRunning, showTrouble } from "./progress.js";
import { keyOf, tidy, withTrace } from "./questions.js";
import { Trail } from "./trail.js";

const KEPT_ANSWERS = 16;
const isNodePage = /\/node\/[^/]+$/.test(location.pathname);

const USUAL = { scalar: "direct_effect", order: "size", head: ALL_HEADS, showsAttention: true, filter: "", isWhole: false };

/** Of a view what is not as usual, so that addresses stay short. */
function said(view) {
  return Object.fromEntries(Object.entries(view).filter(([name, value]) =>
    value !== null && value !== undefined && value !== USUAL[name] && !(Array.isArray(value) && !value.length)));
}

/** Of a view what makes sense for the next question too. */
function carriedOn({ scalar, hidden, filter, open }) {
  return Object.fromEntries(Object.entries({ scalar, hidden, filter, open }).filter(([, value]) => value !== undefined));
}

/** What was clicked is about to go: eyes and keys move to what is changed, how far the answer is, and what comes of it. */
function showWhereItComes() {
  byId("progress").focus({ preventScroll: true });
  if (byId("changes").getBoundingClientRect().top < 0) byId("changes").scrollIntoView();
}

class Workbench {
  constructor() {
    this.answers = new Map(); // by question, the latest last
    this.asked = null; // the question whose answer is shown, or on its way
    this.view = {};
    this.call = null; // how to cancel what is on its way
    this.pictures = null; // how to cancel what pictures ask
    this.model = null; // until the server has told of it
    this.drawn = null; // of the answer, what can be chosen from outside
    this.beginning = null; // the promise that it is known, while that is not so
    this.form = new Form((question) => this.run(question));
    this.trail = new Trail((question) => this.ask(question));
    this.gathered = new Gathered((withThem) => this.ask(withThem(withTrace(this.asked, null))));
    byId("cancel").addEventListener("click", () => this.cancel());
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address holds the question
      byId("answer").scrollIntoView();
      byId("answer").focus({ preventScroll: true });
    });
    byId("examples").addEventListener("change", ({ target }) => this.startFrom(target.value));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    useDark(dark.matches);
    dark.addEventListener("change", () => {
      useDark(dark.matches);
      const data = this.asked && this.answers.get(keyOf(this.asked));
      if (data) this.draw(data, byId("circuit-picture")); // has no colours of its own, and may be searching
    });
  }

  start() {
    startMenu();
    onTokenWanted(askToken);
    this.begin();
  }

  /** Asks what is typed, once it is known what the server has: Run learns it again where nobody gave a token. */
  async run(question) {
    if (this.model) {
      this.ask(question);
      return;
    }
    await this.begin();
    if (this.model && question.prompt) this.ask(this.form.read());
  }

  /** Learns what the server has, and shows what the address says; once, however often it is wanted meanwhile. */
  begin() {
    this.beginning ??= this.learnAndShow().finally(() => { this.beginning = null; });
    return this.beginning;
  }

  async learnAndShow() {
    const known = await this.describe();
    if (known === null) return;
    const { model, examples } = known;
    Object.assign(this, { model, examples });
    drawModel(model);
    if (isNodePage) {
      const { drawNodePage } = await import("./node.js");
      await drawNodePage();
      return;
    }
    this.form.useModel(model);
    byId("examples").append(...examples.map(({ title }, index) => make("option", { value: index }, title)));
    addEventListener("popstate", () => this.openAddress());
    this.openAddress();
  }

  /** What the server has; waits while it is still loading. */
  async describe() {
    for (let said = null; ;) {
      try {
        const known = await ask("model", {});
        byId("progress").replaceChildren();
        return known;
      } catch (error) {
        if (error.message !== said) showTrouble(error.message); // screen readers say it each time it is shown
        said = error.message;
        if (error.status !== 503) return null;
        await new Promise((done) => setTimeout(done, 1000));
      }
    }
  }

  startFrom(index) {
    const { title, ...question } = this.examples[index] ?? {};
    if (title) this.propose(tidy(question));
    byId("examples").value = "";
    byId("run").focus();
  }

  /** Asks and shows what the address says, as when one goes back. */
  openAddress() {
    const { question, isBroken, view } = fromFragment(location.hash);
    if (isBroken) showTrouble("This address holds no question that can be read: perhaps it was cut off.");
    if (question) this.open(tidy(question), view);
    else if (!this.form.read().prompt) this.propose(tidy({ ...this.examples[0], title: null }));
  }

  /** Puts a question into the form without asking it. */
  propose(question) {
    this.form.write(question);
    this.drawProposed(question);
  }

  /** Changes that are not asked for yet: without one of them what is typed stays. */
  drawProposed(question) {
    drawChanges(question, (without) => this.propose(without(this.form.read())));
  }

  /** Asks another question: a step forward in the trail. */
  ask(question) {
    const tidied = tidy(question);
    const kept = this.asked === null ? {} : carriedOn(this.view);
    if (this.asked === null || keyOf(tidied) !== keyOf(this.asked)) history.pushState(null, "", fragment(tidied, said(kept)));
    const answered = this.open(tidied, kept);
    if (!["question", "trail"].some((id) => byId(id).contains(document.activeElement))) showWhereItComes();
    return answered;
  }

  async open(question, view) {
    this.call?.abort();
    Object.assign(this, { asked: question, view, call: null });
    this.form.write(question);
    drawChanges(question, (without) => this.ask(without(question)));
    this.gathered.show(question);
    this.trail.show(question);
    const key = keyOf(question);
    const known = this.answers.get(key);
    if (known) {
      showRunning(false);
      showDone(null);
      this.draw(known);
      return;
    }
    const call = new AbortController();
    this.call = call;
    showRunning(true);
    try {
      await this.receive(question, call.signal);
    } catch (error) {
      if (this.call !== call) return; // another question was asked meanwhile
      byId("answer").replaceChildren();
      if (call.signal.aborted) showCancelled();
      else this.showError(error);
    } finally {
      if (this.call === call) {
        this.call = null;
        showRunning(false);
      }
    }
  }

  async receive(question, signal) {
    const start = performance.now();
    let data = null;
    for await (const line of lines("debug", { question }, signal)) {
      showProgress(line);
      if (line.event === "answer") data = line.data;
    }
    if (data === null) throw new AskError("The server gave no answer.");
    this.remember(question, data);
    showDone((performance.now() - start) / 1000);
    this.draw(data);
  }

  remember(question, data) {
    this.answers.set(keyOf(question), data);
    if (this.answers.size > KEPT_ANSWERS) this.answers.delete(this.answers.keys().next().value);
    this.trail.note(question, data.runs.map(({ value }) => value));
  }

  cancel() {
    this.call?.abort();
    byId("run").focus();
  }

  showError(error) {
    const others = this.form.showFaults(error.violations ?? []);
    const isAllInFields = error.violations?.length > 0 && !others.length;
    showTrouble(isAllInFields ? "This cannot be asked: see the fields above." : error.message, others.filter((one) => !error.message.includes(one)));
  }

  /** Draws an answer, with what can be done next at every node; of the same answer as before a picture may stay as it is. */
  draw(data, kept = null) {
    if (kept === null) {
      this.pictures?.abort();
      this.pictures = new AbortController();
    }
    closeMenu();
    const question = this.asked;
    const see = (view) => this.see(this.asked === question ? view : carriedOn(view)); // another may be on its way
    const page = {
      ask: (one) => this.ask(one),
      keep: (node, type) => this.gathered.add(node, type),
      isKept: (node) => this.gathered.has(node) || question.onlyThese?.includes(node),
      wantBaseline: (change) => this.wantBaseline(change),
      filter: (words) => this.filterNodes(words),
      openNode: (node, element) => openMenu(node.spelling, actions(node), element),
      openComponent: (name, element) => openMenu(name, componentActions(name, question, page), element),
    };
    const actions = (node) => actionsOf(node, question, page);
    const context = { question, data, model: this.model, page, signal: this.pictures.signal };
    this.drawn = drawAnswer(byId("answer"), data, {
      view: this.view,
      onView: see,
      more: pictureSections(context, this.view.open ?? [], (open) => see({ open }), kept),
      nodeActions: (node) => actionButtons(actions(node)),
      openNode: page.openNode,
      openPair: (pair, cell) => openMenu(...this.pairMenu(pair, data, actions), cell),
    });
  }

  /** Of one head's cell the actions of that pair; of all heads together the heads that the answer lists there. */
  pairMenu({ from, to, head, nodes }, data, actions) {
    const title = `${data.tokens[from].quoted} @ ${from} → ${data.tokens[to].quoted} @ ${to}`;
    if (head !== null) {
      const [layer, index] = head.match(/\d+/g).map(Number);
      const node = nodes[0] ?? {
        type: "attention_head", component: head, layer, index, token: from, attended_to: to, spelling: `${head} @ ${from} -> ${to}`,
      };
      return [`${head}, ${title}`, actions(node)];
    }
    const show = (node) => ({ title: node.component, run: () => {
      this.drawn.nodes.hold(this.drawn.nodes.rowOf(node.spelling));
      byId("card").scrollIntoView({ block: "nearest" });
    } });
    return [title, nodes.length ? nodes.slice(0, 12).map(show) : [{ title: "no head among the listed nodes" }]];
  }

  filterNodes(words) {
    byId("filter").value = words;
    byId("filter").dispatchEvent(new Event("input"));
    byId("nodes-section").scrollIntoView();
    byId("filter").focus({ preventScroll: true });
  }

  wantBaseline(change) {
    const { baseline } = this.form.lists;
    const field = baseline.fields()[0] ?? baseline.add("");
    this.form.rest.changes = [...(this.asked.changes ?? []), change];
    this.drawProposed(this.form.rest);
    this.form.showFaults([{ field: "baseline", description: "To patch from a baseline, say which: a prompt of as many tokens." }]);
    field.focus();
  }

  /** Keeps the address in step with what is shown. */
  see(view) {
    this.view = { ...this.view, ...view };
    history.replaceState(null, "", fragment(this.asked, said(this.view)));
  }
}

new Workbench().start();

// The form: what is typed as a question, and faults beside the fields that they are about.

import { byId, make } from "../report/elements.js";
import { showTokens, tokenBoxes } from "./live_tokens.js";
import { drawOptions } from "./options.js";
import { tidy } from "./questions.js";
import { TextList } from "./text_list.js";

const plain = (count) => `${count} ${count === 1 ? "token" : "tokens"}`;

export class Form {
  /**
   * @param onAsk called with the question when it is to be asked
   */
  constructor(onAsk) {
    this.rest = {}; // of the question, what has no field: changes and what is kept
    this.nPromptTokens = null;
    this.options = null; // until the model is known
    const target = (field, below) => {
      showTokens(field, below, ({ tokens }) =>
        [tokens.length === 1 ? `${tokens[0].quoted} · ${tokens[0].id}` : `${plain(tokens.length)}: ${tokens.map((one) => one.quoted).join(" ")}`], false);
      if (this.lists) byId("targets-note").textContent = oddities(this.lists.target.read(), this.lists.distractor.read()).join(" ");
    };
    this.lists = {
      target: new TextList(byId("target"), { name: "target", title: "target", onInput: target }),
      distractor: new TextList(byId("distractor"), { name: "distractor", title: "distractor", onInput: target }),
      baseline: new TextList(byId("baseline"), { name: "baseline", title: "baseline", isLong: true, least: 0,
        onInput: (field, below) => {
          fit(field);
          showTokens(field, below, ({ count }) => [this.compared(count)], this.addBos());
        } }),
    };
    const prompt = byId("prompt-text");
    prompt.addEventListener("input", () => this.promptChanged());
    prompt.addEventListener("keydown", (event) => { // a prompt's own line ends are typed with Shift
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("question").requestSubmit();
    });
    addEventListener("resize", () => document.querySelectorAll("#question textarea").forEach(fit));
    byId("question").addEventListener("submit", (event) => {
      event.preventDefault();
      onAsk(this.read());
    });
  }

  /** Options depend on the model. */
  useModel(model) {
    this.options = drawOptions(model);
    this.options.write(this.rest);
    byId("option-addBos").addEventListener("input", () => this.countAnew());
  }

  addBos() {
    return (this.options?.read() ?? this.rest).addBos ?? null;
  }

  promptChanged() {
    const prompt = byId("prompt-text");
    fit(prompt);
    if (!prompt.value) this.promptHas(null);
    showTokens(prompt, byId("prompt-tokens"), ({ tokens, count }) => {
      this.promptHas(count);
      return [...tokenBoxes(tokens), make("small", {}, ` ${plain(count)}`)];
    }, this.addBos());
  }

  promptHas(count) {
    if (count === this.nPromptTokens) return;
    this.nPromptTokens = count;
    this.lists.baseline.tell();
  }

  /** Counts the tokens of prompt and baselines as they are to be counted now. */
  countAnew() {
    this.promptChanged();
    this.lists.baseline.tell();
  }

  compared(count) {
    const isOther = this.nPromptTokens !== null && this.nPromptTokens !== count;
    return `${plain(count)}${isOther ? `, but the prompt has ${this.nPromptTokens}: both must have as many` : ""}`;
  }

  read() {
    const lists = Object.fromEntries(Object.entries(this.lists).map(([name, list]) => [name, list.read()]));
    return tidy({ ...this.rest, prompt: byId("prompt-text").value, ...lists, ...(this.options?.read() ?? {}) });
  }

  write(question) {
    const addedBos = this.addBos();
    this.rest = { ...question };
    this.clearFaults();
    const prompt = byId("prompt-text");
    const isOther = prompt.value !== (question.prompt ?? "");
    prompt.value = question.prompt ?? "";
    this.options?.write(question);
    for (const [name, list] of Object.entries(this.lists)) list.write(question[name] ?? []);
    if (this.addBos() !== addedBos) this.countAnew();
    else if (isOther) this.promptChanged();
  }

  clearFaults() {
    document.querySelectorAll(".fault").forEach((one) => one.replaceChildren());
    document.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
  }

  /** Says what is wrong where it is wrong. Returns what belongs to no field of the form. */
  showFaults(violations) {
    const others = [];
    const node = (name, index) => (name === "changes" || name === "onlyThese" ? this.rest[name]?.[index] : undefined);
    for (const { field, description: said } of violations) {
      const [, name, index] = /^(\w+)(?:\[(\d+)\])?/.exec(field) ?? [];
      const inner = field.replace(/\.(\w)/, (_, letter) => letter.toUpperCase()); // the form has `loss.token` as `lossToken`
      const told = said.replace(/\b(\w+)\[(\d+)\]/g, (path, ...parts) => node(...parts) ?? path);
      const chip = node(name, index); // chips have no numbers
      const description = !chip || told.includes(chip) ? told : `${chip}: ${told}`;
      const place = byId(`${inner}-fault`) ?? byId(`${name}-fault`);
      if (place === null) {
        others.push(`${field}: ${description}`);
        continue;
      }
      place.closest("details")?.setAttribute("open", "");
      place.append(make("span", {}, description));
      const box = place.closest("[data-field]")?.querySelectorAll("input, textarea, select") ?? [];
      box[Number(index ?? 0)]?.setAttribute("aria-invalid", "true");
    }
    document.querySelector("[aria-invalid]")?.focus();
    return others;
  }
}

/** What is odd about targets and distractors that can be asked for all the same. */
function oddities(target, distractor) {
  const say = (texts, what) => [...new Set(texts)].map((one) => `'${one}' ${what}`);
  const again = [target, distractor].flatMap((list) => list.filter((one, at) => list.indexOf(one) !== at));
  return [...say(target.filter((one) => distractor.includes(one)), "is a target and a distractor: it counts against itself."),
    ...say(again, "stands twice: it counts twice.")];
}

/** As high as its text. */
function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

// A list of texts, each in a field of its own: tokens, whose spaces matter, or whole prompts.

import { make } from "../report/elements.js";

export class TextList {
  /**
   * @param place the element to fill
   * @param name the question's field
   * @param title what is said of it
   * @param isLong whether the texts are prompts
   * @param onInput called with a field and the element below it whenever a text changes
   */
  constructor(place, { name, title, isLong = false, least = 1, onInput }) {
    Object.assign(this, { name, title, isLong, least, onInput });
    this.items = make("div", { class: "items" });
    this.adding = make("button", { type: "button", class: "link add", "aria-label": `add a ${title}`, onclick: () => this.add("").focus() },
      isLong ? `+ ${title}` : "+ another");
    place.replaceChildren(make("fieldset", { class: isLong ? "texts long" : "texts" },
      make("legend", {}, title), this.items, this.adding));
    this.write([]);
  }

  fields() { return [...this.items.querySelectorAll("input, textarea")]; }

  read() { return this.fields().map((one) => one.value).filter(Boolean); }

  /** Calls `onInput` for each text as it is. */
  tell() {
    for (const item of this.items.children) this.onInput(item.firstChild, item.lastChild);
  }

  write(texts) {
    const values = texts.length >= this.least ? texts : [""].slice(0, this.least);
    if (this.fields().map((one) => one.value).join("\0") === values.join("\0") && this.fields().length === values.length) return;
    this.items.replaceChildren();
    values.forEach((one) => this.add(one));
  }

  add(text) {
    const attributes = { spellcheck: "false", autocomplete: "off", "aria-describedby": `${this.name}-fault` };
    const field = make(this.isLong ? "textarea" : "input", this.isLong ? { ...attributes, rows: "1" } : { ...attributes, type: "text" });
    field.value = text;
    const below = make("small", { class: "live" });
    const item = make("div", { class: "item" }, field,
      make("button", { type: "button", class: "link remove", "aria-label": `remove this ${this.title}`, onclick: () => {
        item.remove();
        this.number();
        if (this.items.children.length < this.least) this.add("");
        this.adding.focus();
        this.onInput(field, below);
      } }, "×"), below);
    field.addEventListener("input", () => this.onInput(field, below));
    this.items.append(item);
    this.number();
    this.onInput(field, below);
    return field;
  }

  /** Names the fields by their place. */
  number() {
    this.fields().forEach((field, place) => {
      field.id = `${this.name}-${place}`;
      field.setAttribute("aria-label", place ? `${this.title} ${place + 1}` : this.title);
    });
  }
}

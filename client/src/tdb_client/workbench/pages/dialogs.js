// Small questions in a box of their own: the API token, and by how much to scale.

import { byId, make } from "../report/elements.js";

/** Asks for one line. Gives what was typed, or null where nobody wanted to say. */
export function askLine({ title, text, label, type = "text", value = "", button = "OK" }) {
  const dialog = byId("dialog");
  const field = make("input", {
    id: "dialog-field", type, value, autocomplete: "off", spellcheck: "false", step: type === "number" ? "any" : null, required: true,
  });
  const form = make("form", { method: "dialog" },
    make("h2", { id: "dialog-title" }, title), text ? make("p", { class: "hint" }, text) : [],
    make("label", { for: "dialog-field" }, label, " ", field),
    make("div", { class: "run" }, make("button", { type: "submit", class: "primary" }, button),
      make("button", { type: "button", onclick: () => dialog.close("") }, "Cancel")));
  dialog.replaceChildren(form);
  return new Promise((done) => {
    let given = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault(); // closing is our own: the policy forbids forms that go anywhere
      given = field.value;
      dialog.close();
    });
    dialog.addEventListener("close", () => done(given), { once: true });
    dialog.showModal();
    field.select();
  });
}

export function askToken(wasWrong) {
  return askLine({
    title: "API token", label: "token", type: "password", button: "Use it",
    text: `${wasWrong ? "That token was not accepted. " : ""}This server answers who has a token. It is kept until this tab is closed.`,
  });
}

// The request as text to copy: as a command, as a program, as the message.

import { byId, make } from "./elements.js";

export function drawRequest({ command, program, message, method }) {
  const texts = [
    ["Command", command, true],
    ["Python", program, false],
    [`JSON for ${method}`, message, false],
  ];
  byId("request").replaceChildren(...texts.map(([title, text, isOpen]) => {
    const code = make("pre", { tabindex: "0" }, text);
    const said = make("span", { class: "said", role: "status" });
    const button = make("button", { type: "button", onclick: () => copy(text, code, said) }, "copy");
    return make("details", { open: isOpen }, make("summary", {}, title), make("div", { class: "copied" }, code, button, said));
  }));
}

/** Copies where the browser lets us; else selects the text, so that the keys for copying do it. */
async function copy(text, code, said) {
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "copied";
  } catch {
    said.textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl+C or ⌘C";
  }
}

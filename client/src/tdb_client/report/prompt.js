// The prompt, each token on the colour of what it adds to the objective. Tokens are buttons that filter the nodes;
// Tab stops at one of them, and the arrow keys move on.

import { byId, legend, make } from "./elements.js";
import { moveFocus } from "./focus.js";
import { colour, largest, number, shortNumber } from "./numbers.js";

const MAX_TOKENS_WITH_NUMBERS = 200;

export function drawPrompt(data, state, onToken) {
  const values = state.perToken((run) => run.attribution);
  const most = largest(values);
  const isShort = data.tokens.length <= MAX_TOKENS_WITH_NUMBERS;
  byId("prompt").replaceChildren(...data.tokens.map(({ text, quoted }, token) => {
    const word = make("span", { class: "word" }, text);
    word.style.backgroundColor = colour(values[token], most);
    return make("button", {
      type: "button",
      class: "token",
      title: `${quoted} @ ${token}: ${number(values[token], true)}`,
      tabindex: token === (state.token ?? 0) ? "0" : "-1",
      "aria-pressed": String(state.token === token),
      onfocus: ({ currentTarget }) => {
        byId("prompt").querySelector("[tabindex='0']").tabIndex = -1;
        currentTarget.tabIndex = 0;
      },
      onclick: () => onToken(state.token === token ? null : token),
    }, word, ...(isShort ? [make("small", {}, shortNumber(values[token], true))] : []));
  }));
  byId("prompt").onkeydown = (event) => moveFocus(event, [...byId("prompt").children], ["ArrowLeft", "ArrowRight"]);
  legend(byId("prompt-legend"), most, ["lowers", "raises"]);
}

/** Presses in the button of one token, or of none. */
export function markToken(chosen) {
  byId("prompt").querySelector("[aria-pressed=true]")?.setAttribute("aria-pressed", "false");
  byId("prompt").children[chosen]?.setAttribute("aria-pressed", "true");
}

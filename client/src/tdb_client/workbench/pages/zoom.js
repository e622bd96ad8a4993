// A picture that can be made larger and moved: with the wheel and the pointer, with buttons, and with the keys.

import { make } from "../report/elements.js";
import { svg } from "./svg.js";

const STEP = 1.25;
const MOVE_SHARE = 0.1;

export class ZoomedView {
  constructor() {
    this.element = svg("svg", { class: "zoomed", role: "group", "aria-label": "graph: plus, minus and arrow keys zoom and move", tabindex: "0" });
    this.element.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && !this.element.matches(":focus-within")) return; // the page scrolls
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? STEP : 1 / STEP);
    }, { passive: false });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("pointerdown", (event) => this.drag(event));
    Object.assign(this, { size: [1, 1], scale: 1, centre: null });
  }

  /** Buttons for it. */
  buttons() {
    const button = (text, title, run) => make("button", { type: "button", "aria-label": title, title, onclick: run }, text);
    return make("span", { class: "zoom" }, button("+", "larger", () => this.zoom(STEP)), button("−", "smaller", () => this.zoom(1 / STEP)),
      button("fit", "as large as fits", () => { this.scale = 1; this.centre = null; this.see(); }));
  }

  /** Shows other content, seen as what was there before. */
  show(content, width, height) {
    this.size = [width, height];
    this.element.replaceChildren(content);
    this.see();
  }

  zoom(factor) {
    this.scale = Math.min(12, Math.max(0.5, this.scale * factor));
    this.see();
  }

  move(across, down) {
    const [x, y] = this.centre ?? this.size.map((one) => one / 2);
    this.centre = [x + across, y + down];
    this.see();
  }

  key(event) {
    const share = MOVE_SHARE / this.scale;
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === "+" || event.key === "=") this.zoom(STEP);
    else if (event.key === "-") this.zoom(1 / STEP);
    else if (across || down) this.move(across * share * this.size[0], down * share * this.size[1]);
    else return;
    event.preventDefault();
  }

  drag(start) {
    if (start.button !== 0) return; // after which a menu may come, and no end of it
    let [x, y] = [start.clientX, start.clientY];
    const perPixel = this.size[0] / this.scale / this.element.clientWidth;
    const move = (event) => {
      this.move((x - event.clientX) * perPixel, (y - event.clientY) * perPixel);
      [x, y] = [event.clientX, event.clientY];
    };
    const over = new AbortController();
    const { signal } = over;
    addEventListener("pointermove", move, { signal });
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => over.abort(), { signal });
  }

  see() {
    const [width, height] = this.size.map((one) => one / this.scale);
    const [x, y] = this.centre ?? this.size.map((one) => one / 2);
    this.element.setAttribute("viewBox", `${x - width / 2} ${y - height / 2} ${width} ${height}`);
  }
}

// A menu beside what it is about: arrow keys move, Escape and a click elsewhere close it.

import { byId, make } from "../report/elements.js";
import { moveFocus } from "../report/focus.js";

let opener = null;

/** Closes the menu, where one is open. */
export function closeMenu(isFocusBack = false) {
  byId("menu").hidden = true;
  opener?.setAttribute("aria-expanded", "false");
  if (isFocusBack) opener?.focus();
  opener = null;
}

/**
 * @param title what the menu is about
 * @param items each with a `title` and what to `run`; without that it is a heading
 * @param element beside which it opens
 */
export function openMenu(title, items, element) {
  const menu = byId("menu");
  if (opener === element) {
    closeMenu(true);
    return;
  }
  closeMenu();
  opener = element;
  element.setAttribute("aria-expanded", "true");
  menu.setAttribute("aria-label", title);
  menu.replaceChildren(
    make("p", { class: "menu-title", role: "presentation" }, title),
    ...items.map(({ title: text, run, note }) => run
      ? make("button", { type: "button", role: "menuitem", tabindex: "-1", onclick: () => { closeMenu(true); run(); } },
        text, note ? make("small", {}, note) : [])
      : make("p", { class: "menu-title", role: "presentation" }, text)),
  );
  menu.hidden = false;
  const box = element.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - menu.offsetWidth - 8));
  const isBelow = box.bottom + menu.offsetHeight < innerHeight || box.top < menu.offsetHeight;
  menu.style.left = `${left + scrollX}px`;
  menu.style.top = `${(isBelow ? box.bottom + 2 : box.top - menu.offsetHeight - 2) + scrollY}px`;
  (menu.querySelector("button") ?? menu).focus({ preventScroll: true });
}

/** To be called once: keys and clicks. */
export function startMenu() {
  const menu = byId("menu");
  menu.addEventListener("keydown", (event) => {
    moveFocus(event, [...menu.querySelectorAll("button")], ["ArrowUp", "ArrowDown"], true);
    if (event.key !== "Escape" && event.key !== "Tab") return;
    closeMenu(true);
    event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!menu.hidden && !menu.contains(event.target) && !opener?.contains(event.target)) closeMenu();
  });
}

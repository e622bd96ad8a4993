// Moving the focus with the keys, so that Tab stops at one of many elements and passes the others.

/**
 * Moves the focus from one of some elements to another, as the arrow keys, Home and End say.
 *
 * @param keys the two keys that lead to the element before and to the one after
 * @param goesRound whether the first comes after the last
 */
export function moveFocus(event, elements, [before, after], goesRound = false) {
  const at = elements.indexOf(document.activeElement);
  const last = elements.length - 1;
  const to = { [before]: at - 1, [after]: at + 1, Home: 0, End: last }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  const target = goesRound ? elements.at(to % elements.length) : elements[Math.max(0, Math.min(last, to))];
  elements[at].tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

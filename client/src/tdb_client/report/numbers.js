// Numbers as text and as colour. Blue raises, orange lowers: told apart by colour-blind eyes, and both light enough
// for dark letters. Signs are always written too, for print without colour.

const MINUS = "\u2212";
const NOT_KNOWN = "–";
export const ZERO = "·"; // in pictures, where most cells may have none

/** A number in few characters; null stands for one that is not finite or not known. */
export function number(value, withPlus = false) {
  if (value === null || value === undefined) return NOT_KNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0;
  const text = size >= 1e5 || size < 1e-3 ? size.toExponential(1) : size.toFixed(digits);
  return (value < 0 ? MINUS : withPlus ? "+" : "") + text;
}

/** A number for a small cell: two or three digits. */
export function shortNumber(value, withPlus = false) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (value === 0) return ZERO;
  if (size < 0.005) return "0.00";
  const text = size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(2);
  return (value < 0 ? MINUS : withPlus ? "+" : "") + text;
}

/** The largest magnitude of numbers, which gets the deepest colour. */
export function largest(values) {
  return values.reduce((most, one) => Math.max(most, Math.abs(one ?? 0)), 0) || 1;
}

const LIGHT = { paper: [255, 255, 255], raises: [86, 156, 224], lowers: [243, 151, 66] };
const DARK = { paper: [24, 27, 32], raises: [30, 92, 160], lowers: [146, 76, 14] };
let scheme = LIGHT;

/** Whether letters are light on dark from now on; what is drawn already keeps its colours. */
export function useDark(isDark) {
  scheme = isDark ? DARK : LIGHT;
}

/** The paper's colour, deepening to blue for positive and to orange for negative numbers. */
export function colour(value, most) {
  if (value === null || value === undefined) return "";
  const share = Math.min(1, Math.abs(value) / most);
  const { paper, raises, lowers } = scheme;
  const mixed = (value > 0 ? raises : lowers).map((channel, at) => Math.round(paper[at] + (channel - paper[at]) * share));
  return `rgb(${mixed.join(", ")})`;
}

/** The number where it is known in both; else null. */
export function difference(before, after) {
  return before === null || before === undefined || after === null || after === undefined ? null : after - before;
}

/** The sum where all are known; else null. */
export function sum(values) {
  return values.reduce((total, one) => (total === null || one === null ? null : total + one), 0);
}

// Numbers as text and as colour. Blue raises, orange lowers: told apart by colour-blind eyes, and both light enough
// for dark letters. Signs are always written too, for print without colour.

const MINUS = "\u2212";
const NOT_KNOWN = "–";
const ZERO = "·"; // in pictures, where most cells may have none

/** A number in few characters; null stands for one that is not finite or not known. */
function number(value, withPlus = false) {
  if (value === null || value === undefined) return NOT_KNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0;
  const text = size >= 1e5 || size < 1e-3 ? size.toExponential(1) : size.toFixed(digits);
  return (value < 0 ? MINUS : withPlus ? "+" : "") + text;
}

/** A number for a small cell: two or three digits. */
function shortNumber(value, withPlus = false) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (value === 0) return ZERO;
  if (size < 0.005) return "0.00";
  const text = size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(2);
  return (value < 0 ? MINUS : withPlus ? "+" : "") + text;
}

/** The largest magnitude of numbers, which gets the deepest colour. */
function largest(values) {
  return values.reduce((most, one) => Math.max(most, Math.abs(one ?? 0)), 0) || 1;
}

/** White, deepening to blue for positive and to orange for negative numbers. */
function colour(value, most) {
  if (value === null || value === undefined) return "";
  const share = Math.min(1, Math.abs(value) / most);
  const end = value > 0 ? [86, 156, 224] : [243, 151, 66];
  const mixed = end.map((channel) => Math.round(255 + (channel - 255) * share));
  return `rgb(${mixed.join(", ")})`;
}

/** The number where it is known in both; else null. */
function difference(before, after) {
  return before === null || before === undefined || after === null || after === undefined ? null : after - before;
}

function sum(values) {
  return values.reduce((total, one) => total + (one ?? 0), 0);
}

// What is shown of an answer: which run, which number, which token.

import { difference } from "./numbers.js";

export const SCALARS = {
  direct_effect: {
    title: "direct effect", isEffect: true,
    meaning: "what a node adds in the direction of the objective, past all later layers",
  },
  act_times_grad: {
    title: "act × grad", isEffect: true,
    meaning: "estimated total effect on the objective, by all routes through the model",
  },
  write_norm: { title: "write norm", isEffect: false, meaning: "how much is added to the residual stream, with the activation's sign" },
  activation: { title: "activation", isEffect: false, meaning: "attention, or the activation of a neuron or latent" },
};
export const RUN_NAMES = ["before", "after"];
export const CHANGE = "change";

export class State {
  /**
   * @param runs the answer's runs
   * @param view what was shown of an answer before, as far as this one has it
   */
  constructor(runs, { shown, scalar, token } = {}) {
    const isThere = shown === CHANGE ? runs.length > 1 : runs[Number(shown)] !== undefined;
    Object.assign(this, {
      runs,
      shown: isThere ? shown : runs.length > 1 ? CHANGE : "0",
      scalar: Object.hasOwn(SCALARS, scalar) ? scalar : "direct_effect",
      token: Number.isInteger(token) && token >= 0 && token < runs[0].attribution.length ? token : null,
    });
  }

  get isChange() { return this.shown === CHANGE; }

  /** Whether numbers raise or lower the objective, so that their signs are always written. */
  get isEffect() { return this.isChange || SCALARS[this.scalar].isEffect; }

  /** What is shown, in words. */
  get title() { return `${this.isChange ? "change of " : ""}${SCALARS[this.scalar].title}`; }

  runsShown() { return this.isChange ? this.runs : [this.runs[Number(this.shown)]]; }

  /** Numbers of the run that is shown, or how they change. */
  perToken(get) {
    const [first, second] = this.runsShown().map(get);
    return second ? first.map((one, index) => difference(one, second[index])) : first;
  }

  perNode(row, name) {
    const [first, ...second] = this.runsShown().map((run) => run.scalars[name][row]);
    return second.length ? difference(first, second[0]) : first;
  }
}

// Compares what came back with the vector file that all examples share. A program of your own does not need this.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { derivedScalarTypeToJSON, groupIdToJSON } from "../generated/transformer_debugger/v1/derived_scalar.js";
import type { ModelInfo } from "../generated/transformer_debugger/v1/model_service.js";
import { DebugRequest } from "../generated/transformer_debugger/v1/transformer_debugger_service.js";
import type { DebugAnswer, NodeScalars } from "./debug_answers.js";
import type { Failure } from "./failure.js";
import { spelling, strongest } from "./nodes.js";

const TOLERANCE = 1e-4;

interface ExpectedAnswer {
  tokens: string[];
  loss: number;
  nodes: ({ node: string } & Record<keyof NodeScalars, number>)[];
  sums: { groupId: string; derivedScalarType: string; shape: number[]; values: number[] }[];
}

interface Vector {
  model: Pick<ModelInfo, "name" | "digest" | "nLayers" | "nHeads">;
  request: unknown;
  answers: ExpectedAnswer[];
  refused: { code: string; reason: string; fieldViolations: { field: string; reason: string }[] };
}

/** Throws where anything differs. */
export function checkAgainstVector(
  file: string,
  model: ModelInfo,
  request: DebugRequest,
  answers: DebugAnswer[],
  failure: Failure,
): void {
  const vector: Vector = JSON.parse(readFileSync(file, "utf8"));
  const { name, digest, nLayers, nHeads } = model;
  assert.deepEqual({ name, digest, nLayers, nHeads }, vector.model);
  assert.deepEqual(DebugRequest.toJSON(request), vector.request);
  assert.equal(answers.length, vector.answers.length);
  vector.answers.forEach((expected, index) => checkAnswer(answers[index]!, expected));
  const ten = strongest(answers[0]!).slice(0, 10);
  assert.deepEqual(
    ten.map((row) => spelling(answers[0]!.nodes[row])),
    vector.answers[0]!.nodes.slice(0, 10).map((expected) => expected.node),
  );
  const { code, reason, fieldViolations } = vector.refused;
  assert.deepEqual([failure.code, failure.reason], [code, reason]);
  assert.deepEqual(failure.fieldViolations.map(({ field, reason }) => ({ field, reason })), fieldViolations);
  console.log(`all as in ${file}`);
}

function checkAnswer(answer: DebugAnswer, expected: ExpectedAnswer): void {
  assert.deepEqual(answer.tokens, expected.tokens);
  checkClose(answer.loss, expected.loss, "loss");
  const rows = new Map(answer.nodes.map((node, row) => [spelling(node), row]));
  assert.equal(rows.size, expected.nodes.length);
  for (const { node, ...scalars } of expected.nodes) {
    const row = rows.get(node);
    assert(row !== undefined, `${node} is missing`);
    for (const name of Object.keys(scalars) as (keyof NodeScalars)[])
      checkClose(answer.scalars[name][row], scalars[name], `${name} of ${node}`);
  }
  assert.equal(answer.sums.length, expected.sums.length);
  expected.sums.forEach((sum, index) => {
    const { groupId, derivedScalarType, shape, elements } = answer.sums[index]!;
    const names = [groupIdToJSON(groupId), derivedScalarTypeToJSON(derivedScalarType)];
    assert.deepEqual([names, shape], [[sum.groupId, sum.derivedScalarType], sum.shape]);
    sum.values.forEach((value, at) => checkClose(elements[at], value, `${names} at ${at}`));
  });
}

function checkClose(actual: number | undefined, expected: number, what: string): void {
  const allowed = TOLERANCE * Math.max(1, Math.abs(expected));
  assert(Math.abs((actual ?? NaN) - expected) <= allowed, `${what}: ${actual} in place of ${expected}`);
}

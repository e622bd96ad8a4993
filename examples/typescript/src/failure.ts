// A failed call in full: the server sends the reason, and every field at fault, as details of the status.

import { status as codes, type ServiceError } from "@grpc/grpc-js";

import { BadRequest, type BadRequest_FieldViolation, ErrorInfo } from "../generated/google/rpc/error_details.js";
import { Status } from "../generated/google/rpc/status.js";

export interface Failure {
  code: string;
  message: string;
  reason: string;
  fieldViolations: BadRequest_FieldViolation[];
}

/** Reads the error of a call. Errors of other kinds are thrown on. */
export function failureOf(error: unknown): Failure {
  if (!isServiceError(error)) throw error;
  const failure: Failure = { code: codes[error.code], message: error.details, reason: "", fieldViolations: [] };
  const [packed] = error.metadata.get("grpc-status-details-bin");
  if (!(packed instanceof Buffer)) return failure;
  for (const { typeUrl, value } of Status.decode(packed).details) {
    if (typeUrl.endsWith("/google.rpc.ErrorInfo")) failure.reason = ErrorInfo.decode(value).reason;
    if (typeUrl.endsWith("/google.rpc.BadRequest")) failure.fieldViolations = BadRequest.decode(value).fieldViolations;
  }
  return failure;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}

// A failed call in full: the server sends the reason, and every field at fault, as details of the status.

#pragma once

#include <grpcpp/grpcpp.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"

struct Failure : std::runtime_error {
  explicit Failure(const grpc::Status& status);

  grpc::StatusCode code;
  std::string reason;
  std::vector<google::rpc::BadRequest::FieldViolation> field_violations;
};

// The name of a code, such as INVALID_ARGUMENT.
std::string NameOf(grpc::StatusCode code);

// Throws a Failure when a call did not go well.
void ThrowUnlessOk(const grpc::Status& status);

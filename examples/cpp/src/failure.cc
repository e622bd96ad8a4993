#include "failure.h"

#include "google/rpc/status.pb.h"

Failure::Failure(const grpc::Status& status) : std::runtime_error(status.error_message()), code(status.error_code()) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return;
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad_request;
  for (const google::protobuf::Any& detail : details.details()) {
    if (detail.UnpackTo(&info)) reason = info.reason();
    if (detail.UnpackTo(&bad_request)) {
      field_violations.assign(bad_request.field_violations().begin(), bad_request.field_violations().end());
    }
  }
}

std::string NameOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::CANCELLED: return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case grpc::StatusCode::FAILED_PRECONDITION: return "FAILED_PRECONDITION";
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::UNAVAILABLE: return "UNAVAILABLE";
    case grpc::StatusCode::DEADLINE_EXCEEDED: return "DEADLINE_EXCEEDED";
    default: return "code " + std::to_string(code);
  }
}

void ThrowUnlessOk(const grpc::Status& status) {
  if (!status.ok()) throw Failure(status);
}

package explain;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.ErrorInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.List;

/** A failed call in full: the server sends the reason, and every field at fault, as details of the status. */
record Failure(Status.Code code, String message, String reason, List<FieldViolation> fieldViolations) {

  static Failure of(StatusRuntimeException error) throws InvalidProtocolBufferException {
    String reason = "";
    List<FieldViolation> fieldViolations = List.of();
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    for (Any detail : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        reason = detail.unpack(ErrorInfo.class).getReason();
      } else if (detail.is(BadRequest.class)) {
        fieldViolations = detail.unpack(BadRequest.class).getFieldViolationsList();
      }
    }
    return new Failure(error.getStatus().getCode(), status.getMessage(), reason, fieldViolations);
  }
}

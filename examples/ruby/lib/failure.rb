# A failed call in full: the server sends the reason, and every field at fault, as details of the status.

require "google/protobuf/well_known_types" # gives Any its methods
require "google/rpc/error_details_pb"
require "google/rpc/status_pb"

class Failure
  attr_reader :code, :message, :reason, :field_violations

  # Takes the GRPC::BadStatus that a call raised.
  def initialize(error)
    @code = GRPC::Core::StatusCodes.constants.find { |name| GRPC::Core::StatusCodes.const_get(name) == error.code }
    @message = error.details
    @reason, @field_violations = nil, []
    packed = error.metadata["grpc-status-details-bin"] or return
    Google::Rpc::Status.decode(packed).details.each { |detail| take(detail) }
  end

  private

  def take(detail)
    if detail.is(Google::Rpc::ErrorInfo)
      @reason = detail.unpack(Google::Rpc::ErrorInfo).reason
    elsif detail.is(Google::Rpc::BadRequest)
      @field_violations = detail.unpack(Google::Rpc::BadRequest).field_violations.to_a
    end
  end
end

"""The gRPC services, and what stands around every call."""

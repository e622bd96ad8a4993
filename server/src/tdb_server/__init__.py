"""A gRPC service that explains why a language model prefers one token to another."""

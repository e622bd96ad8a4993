"""Generated code of the transformer debugger protos."""

"""The engine: what is computed of a batch of calls, from token ids to tensors on the host."""

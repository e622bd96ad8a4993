"""The processes that hold the model, and what keeps them busy."""

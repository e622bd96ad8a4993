"""The JSON face of the server."""

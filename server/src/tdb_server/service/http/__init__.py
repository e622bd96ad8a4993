"""Listening for HTTP: what connections may do, and which names are answered to."""

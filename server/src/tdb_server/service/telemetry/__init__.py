"""The server seen from outside: a record of every call, and the log, metrics and traces made of it."""

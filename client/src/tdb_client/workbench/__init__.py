"""The workbench: a page that asks a server by clicking. It is a client, and knows what a client knows."""

"""The JSON API and the workbench, over HTTP."""

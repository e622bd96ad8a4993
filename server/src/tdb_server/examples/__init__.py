"""Top examples: where in many texts each neuron, latent and head was strongest.

`kinds.py` says of which nodes, `texts.py` reads the texts, `histogram.py` how activations are counted,
`writing.py` and `reading.py` know the folder's files. What runs the model is `tdb_server.engine.examples`.
"""

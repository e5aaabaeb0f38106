"""Which bytes a rank needs, and the map from store file to `mx.array`."""

"""Super-networks: one set of weights that holds many networks."""

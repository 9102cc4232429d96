"""The public front: admission, routing and relay of token streams."""

"""The four services and the runtime they share."""

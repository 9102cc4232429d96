"""A cluster in virtual time: the scheduler's own core over a model of nodes, links and engines."""

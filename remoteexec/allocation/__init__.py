"""All nodes of an allocation behind one pool: what they have, and the agents that run workers there."""

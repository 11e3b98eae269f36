"""The way to a cluster's login node: one SSH connection, checked host keys, one round of authentication."""

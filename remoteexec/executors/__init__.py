"""One file for each place where tasks run."""

"""What objects consist of, functions and classes with all that they use: for keys, and for comparing two processes."""

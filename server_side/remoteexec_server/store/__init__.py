"""Task files on the cluster's shared file system: names, layout, reading, writing, watching."""

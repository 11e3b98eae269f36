"""Jobs that host workers: they take tickets from the store, and run them as long as there are any."""

"""From submit to result: what is decided (tracker), and the one thread that does it (driver)."""

"""How one scheduler differs from another, for `batch.dialect_queue`: after the manuals; only Grid Engine was run."""

"""From an upstream's bytes to batches of images: sources, rules, split and the prepared store."""

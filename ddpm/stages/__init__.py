"""The pipeline's stages, a module each: what `ddpm STAGE` runs."""

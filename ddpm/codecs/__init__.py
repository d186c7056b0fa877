"""What stands between stored data and the x of a diffusion model."""

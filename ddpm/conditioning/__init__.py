"""What conditions and guides a network. `columns` needs numpy alone, because the exported sampler reads it too."""

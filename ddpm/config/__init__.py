"""params.yaml as typed models, a file a section: every key, its range and its unit; unknown keys are refused.

The defaults are those of Ho et al. 2020 for CIFAR-10, so that a model in params.yaml states only what it changes. They
differ from the published code in norm_epsilon, downsample_padding, init, horizontal_flip and ema_warmup, which the
preset ddpm-cifar10 sets as published.
"""

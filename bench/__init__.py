"""Studies and benchmarks of the project. Not part of the package that is installed."""

"""The runtime of an exported model: numpy and onnxruntime alone."""

"""Deployment: ONNX export, and the runtime that needs only numpy and onnxruntime."""

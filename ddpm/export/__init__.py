"""From a model directory to ONNX files, and the proof that they are the trained model. Needs torch and onnx."""

"""Models as ONNX graphs: written by torch, run with onnxruntime alone."""

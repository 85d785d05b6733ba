"""Models as ONNX graphs: written by torch, computed by onnxruntime alone."""

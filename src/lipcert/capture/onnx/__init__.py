"""The ONNX front end: a file becomes a graph of ATen calls, which the same rules as a torch model's turn into nodes."""

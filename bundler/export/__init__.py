"""ONNX export: requires → export → ensures; and what the graphs compute on the build host."""

"""The device program: it runs and checks the models of a bundle, with numpy, ONNX Runtime and the standard library.

The same files are in every bundle, in the archive `device.pyz`, and started there with `python3 device.pyz COMMAND`. The build
host imports from here whatever both must compute alike: SQNR, detections, optimization levels, the documents they exchange.
Nothing here imports another package of the build host; everything runs on Python 3.10 and later.
"""

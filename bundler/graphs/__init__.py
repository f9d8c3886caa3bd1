"""Export to ONNX, passes over exported graphs, and their execution on the build host."""

import os

# ONNX Runtime 1.32 sends telemetry by default and leaves an identifier in the home directory; the switch is read
# when it is imported. A user who set it keeps their choice.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

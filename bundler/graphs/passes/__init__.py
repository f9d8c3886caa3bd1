"""Passes over an exported graph in memory (`onnx_ir.passes`); what each requires and ensures is checked when it is called."""

"""Accuracy on labelled sets: classification, detection, and what a poor figure may be due to."""

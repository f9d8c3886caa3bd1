"""Accuracy on labelled images: classification, detection, and likely causes of low accuracy."""

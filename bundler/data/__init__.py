"""Reading images and labels: decoding, preprocessing, calibration sets and labelled sets."""

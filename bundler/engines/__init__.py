"""The device image and where it runs: engine, emulation, image, container."""

"""The program that ships in a bundle, and what the host must compute like it."""

"""`bundler doctor`: what works on this machine, and what killed commands left behind."""

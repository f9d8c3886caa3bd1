"""Container engines: connection, containers, CPU emulation, and what killed commands left in the engine."""

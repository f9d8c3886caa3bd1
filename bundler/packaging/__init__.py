"""The package: files rendered and staged beside their place, checksummed, archived, and put in place in one move."""

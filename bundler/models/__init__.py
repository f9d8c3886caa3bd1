"""The models, one file per family; `registry` holds the scope table and needs no torch."""

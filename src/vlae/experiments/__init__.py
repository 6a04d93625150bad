"""Named studies: each trains what it needs, or finishes what was begun, and leaves a table and a picture."""

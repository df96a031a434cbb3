"""particles."""

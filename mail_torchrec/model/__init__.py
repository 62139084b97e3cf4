"""MAIL model: tables below, dense towers above, and the wall between the two optimizers."""

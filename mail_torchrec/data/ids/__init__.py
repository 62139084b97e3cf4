"""Id policies: raw ids to table rows."""

"""Names of the cohorts that metrics are reported of."""

COHORTS = ("new", "old", "all")
"""Rows of new users, of old users, and all rows."""
ITEM_COHORTS = ("new_items", "old_items")
"""Rows of new and of old items, where something says which items are new."""
USER_ITEM_COHORTS = tuple(f"{user}_users_{items}" for user in COHORTS[:2] for items in ITEM_COHORTS)
"""New and old users by new and old items."""
COHORT_NAMES = {
    "new": "new users",
    "old": "old users",
    "all": "all users",
    "new_items": "new items",
    "old_items": "old items",
    "new_users_new_items": "new users, new items",
    "new_users_old_items": "new users, old items",
    "old_users_new_items": "old users, new items",
    "old_users_old_items": "old users, old items",
}
"""Cohorts in words."""

"""Golden behaviours of an export: sampled users, their virtual and their real behaviours."""

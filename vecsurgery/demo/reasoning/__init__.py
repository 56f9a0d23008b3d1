"""A family of three tiny models: a base, one that thinks before it answers, one that follows instructions; merged."""

"""Data sets as people have them: layouts, label tables, archives, splits."""

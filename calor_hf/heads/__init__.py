"""Classification heads: find and replace the head of any model, the low-rank head, its rank."""

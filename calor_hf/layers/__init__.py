"""Model surgery: the low-rank head, and finding and replacing the classifier of any vision model."""

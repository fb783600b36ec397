"""Model cards that claim only what was measured, and pushing of listed files only."""

"""Networks, their losses, and the files that their weights are kept in."""

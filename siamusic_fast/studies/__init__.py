"""Studies: grids of pre-training runs, each fine-tuned and scored, with one table at the end."""

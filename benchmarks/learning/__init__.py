"""What pre-training is worth: a study of settings, baselines and fine-tuning, and the page made of it."""

"""Using what was trained: embeddings in files, genres of tracks, similar tracks, exports."""

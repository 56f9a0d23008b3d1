"""Evidence on merging: four fine-tunes of one small model, put together by every method."""

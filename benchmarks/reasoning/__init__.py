"""Merging an instruction model into a reasoning model, on families of tiny models trained for it: the experiment."""

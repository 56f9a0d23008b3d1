"""An original model that knows a small world, and an unlearned one that was damaged; cleaned by the shipped recipe."""

"""Real stores, judged as their users would call them."""

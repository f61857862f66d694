"""Two recordings side by side: where they part, and why."""
